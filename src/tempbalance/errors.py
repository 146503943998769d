"""What can go wrong, as one small tree.

::

    TempBalanceError
    ├── WeightError            a tensor that is not a weight matrix we can analyse (also a ValueError)
    │   └── NonFiniteError     NaN or Inf among the weights
    ├── WindowError            a FARMS window that cannot be cut (also a ValueError)
    ├── SelectionError         a pattern or option that names nothing (also a ValueError)
    ├── CheckpointError        a path or file that is not a readable checkpoint
    │   ├── NotFoundError      nothing there (also a FileNotFoundError)
    │   ├── CorruptFileError   truncated, or an index that does not fit its shards
    │   └── UnsafeFileError    a pickle that wants to run code
    ├── BalanceError           an optimizer, model and recipe that cannot be brought together (also a ValueError)
    │   └── RefreshError       a refresh in training that failed, on this or on another rank (also a RuntimeError)
    ├── AllocationError        a budget that cannot be shared out, or a plan that cannot be read (also a ValueError)
    ├── StudyError             a comparison of methods that cannot be run, or not in this folder (also a ValueError)
    ├── TokensError            token ids that cannot be read or used, an empty calibration set (also a ValueError)
    ├── AnalysisError          a result that cannot be saved, loaded or compared
    └── MissingExtraError      an optional dependency is needed (also an ImportError)
"""

from __future__ import annotations

__all__ = [
    "AllocationError",
    "AnalysisError",
    "BalanceError",
    "CheckpointError",
    "CorruptFileError",
    "MissingExtraError",
    "NonFiniteError",
    "NotFoundError",
    "NumericsWarning",
    "RefreshError",
    "SelectionError",
    "StudyError",
    "TempBalanceError",
    "TokensError",
    "UnsafeFileError",
    "WeightError",
    "WindowError",
]


class TempBalanceError(Exception):
    """Base of every error that tempbalance raises on purpose."""


class WeightError(TempBalanceError, ValueError):
    """A tensor has a shape or dtype that no weight matrix has."""


class NonFiniteError(WeightError):
    """A weight holds NaN or Inf."""


class WindowError(TempBalanceError, ValueError):
    """A FARMS window has impossible parameters, or fits into no part of a matrix."""


class SelectionError(TempBalanceError, ValueError):
    """A pattern matches no weight, or an option does not exist."""


class CheckpointError(TempBalanceError):
    """A path or file is not a checkpoint that can be read."""


class NotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file, folder or hub id."""


class CorruptFileError(CheckpointError):
    """A file is truncated, or an index and its shards disagree."""


class UnsafeFileError(CheckpointError):
    """A pickle wants to run code; it is refused."""


class BalanceError(TempBalanceError, ValueError):
    """An optimizer, a model and a recipe cannot be brought together; the message says what to do."""


class RefreshError(BalanceError, RuntimeError):
    """A refresh of the multipliers failed; in distributed training every rank raises it with the same message."""


class AllocationError(TempBalanceError, ValueError):
    """A budget of sparsity, bits or ranks cannot be shared out over a model, or a plan cannot be read."""


class StudyError(TempBalanceError, ValueError):
    """A comparison of methods that cannot be run, or not in this folder; the message says what to do."""


class TokensError(TempBalanceError, ValueError):
    """Token ids cannot be read, are none, or are not of this model."""


class AnalysisError(TempBalanceError):
    """A result cannot be saved, loaded or compared."""


class MissingExtraError(TempBalanceError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class NumericsWarning(UserWarning):
    """A number is missing or less accurate than usual; the message says which and why."""
