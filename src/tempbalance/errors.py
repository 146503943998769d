"""Exceptions, checks of arguments, and the check for optional packages.

::

    TempBalanceError
    ├── WeightError            a tensor that cannot be analysed as a weight matrix (also a ValueError)
    │   └── NonFiniteError     a weight contains NaN or Inf
    ├── WindowError            FARMS windows with invalid parameters, or that do not fit (also a ValueError)
    ├── SelectionError         a pattern without a match, an unknown name or option (also a ValueError)
    │   └── UnknownLayerError  a result has no layer of that name or number (also a LookupError)
    ├── CheckpointError        a path or file that is not a readable checkpoint
    │   ├── NotFoundError      no such file, folder or hub id (also a FileNotFoundError)
    │   ├── CorruptFileError   a truncated file, or an index that does not match its shards
    │   └── UnsafeFileError    a pickle that would run code
    ├── BalanceError           an optimizer, model and recipe that do not fit together (also a ValueError)
    │   └── RefreshError       a refresh failed during training, on this or another rank (also a RuntimeError)
    ├── AllocationError        an impossible budget, or an allocation that cannot be read (also a ValueError)
    ├── StudyError             a study that cannot be run, or cannot use a folder (also a ValueError)
    ├── TokensError            token ids that cannot be read or used, an empty calibration set (also a ValueError)
    ├── AnalysisError          an analysis that cannot be saved, loaded or compared
    │   └── OutputError        a file or folder that cannot be written (also a CheckpointError and an OSError)
    ├── ArgumentError          a number or option that is out of range (also a ValueError)
    ├── ArgumentTypeError      an argument of the wrong type (also a TypeError)
    ├── IntegrationError       a framework that is not ready, such as a logger without a run (also a RuntimeError)
    └── MissingExtraError      an optional dependency is needed (also an ImportError)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from numbers import Integral, Real

__all__ = [
    "AllocationError",
    "AnalysisError",
    "ArgumentError",
    "ArgumentTypeError",
    "BalanceError",
    "BalanceWarning",
    "CheckpointError",
    "CorruptFileError",
    "IntegrationError",
    "MissingExtraError",
    "NonFiniteError",
    "NotFoundError",
    "NumericsWarning",
    "OutputError",
    "RefreshError",
    "SelectionError",
    "StudyError",
    "TempBalanceError",
    "TokensError",
    "UnknownLayerError",
    "UnsafeFileError",
    "WeightError",
    "WindowError",
]

_SEEDS = 2**63


class TempBalanceError(Exception):
    """Base class of all errors of tempbalance."""


class WeightError(TempBalanceError, ValueError):
    """A tensor has a shape or dtype that cannot be analysed as a weight matrix."""


class NonFiniteError(WeightError):
    """A weight contains NaN or Inf."""


class WindowError(TempBalanceError, ValueError):
    """FARMS windows have invalid parameters, or do not fit into a matrix."""


class SelectionError(TempBalanceError, ValueError):
    """A pattern matches no weight, or a name or option does not exist."""


class UnknownLayerError(SelectionError, LookupError):
    """A result has no layer of that name or number."""


class CheckpointError(TempBalanceError):
    """A path or file is not a readable checkpoint."""


class NotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file, folder or hub id."""


class CorruptFileError(CheckpointError):
    """A file is truncated, or an index and its shards disagree."""


class UnsafeFileError(CheckpointError):
    """A pickle would run code; it is not loaded."""


class BalanceError(TempBalanceError, ValueError):
    """An optimizer, a model and a recipe do not fit together; the message contains the fix."""


class RefreshError(BalanceError, RuntimeError):
    """A refresh of the multipliers failed; in distributed training all ranks raise it with the same message."""


class AllocationError(TempBalanceError, ValueError):
    """A budget of sparsity, bits or ranks cannot be allocated, or an allocation cannot be read."""


class StudyError(TempBalanceError, ValueError):
    """A study cannot be run, or cannot use the given folder; the message contains the fix."""


class TokensError(TempBalanceError, ValueError):
    """Token ids cannot be read, are missing, or do not belong to this model."""


class AnalysisError(TempBalanceError):
    """An analysis cannot be saved, loaded or compared."""


class OutputError(AnalysisError, CheckpointError, OSError):
    """A file or folder cannot be written; an earlier output is unchanged."""


class ArgumentError(TempBalanceError, ValueError):
    """A number or an option is out of range; the message contains what is allowed."""


class ArgumentTypeError(TempBalanceError, TypeError):
    """An argument has the wrong type; the message contains the right one."""


class IntegrationError(TempBalanceError, RuntimeError):
    """A framework is not ready, such as a logger without an active run; the message contains the fix."""


class MissingExtraError(TempBalanceError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


def check_integer(name: str, value: object, least: float = -math.inf) -> None:
    """Raise an ArgumentTypeError unless a value is an integer, an ArgumentError unless it is large enough."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentTypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, got {value}")


def check_seed(seed: object) -> None:
    """Raise an ArgumentTypeError unless a seed is an integer, an ArgumentError unless torch can take it."""
    check_integer("seed", seed, 0)
    if seed >= _SEEDS:  # type: ignore[operator]  # an integer
        raise ArgumentError(f"seed must be less than 2**63, got {seed}")


def check_numbers(**values: object) -> None:
    """Raise an ArgumentTypeError unless all values are numbers; NaN is left to the check of the range."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ArgumentTypeError(f"{name} must be a number, got {value!r}")
        try:
            float(value)
        except OverflowError:
            raise ArgumentError(f"{name} is too large") from None


def check_type(name: str, value: object, kind: type) -> None:
    """Raise an ArgumentTypeError unless a value is an instance of a class."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise ArgumentTypeError(f"{name} must be of type {kind.__name__}, got {given}")


@contextlib.contextmanager
def require_extra(extra: str, need: str) -> Generator[None]:
    """Raise a ``MissingExtraError`` with the extra to install if an import inside the ``with`` block fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"{need}: pip install 'tempbalance[{extra}]'") from error


class NumericsWarning(UserWarning):
    """A number is missing or less accurate than usual; the message names it and the reason."""


class BalanceWarning(UserWarning):
    """Balancing has no effect, or follows noise only; the message says what to do."""
