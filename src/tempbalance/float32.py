"""Whether float32 eigenvalues are accurate enough: what was fitted to them is fitted again after small moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from tempbalance.errors import ArgumentError, WindowError
from tempbalance.spectra.windows import Windows
from tempbalance.types import Spectrum

__all__ = ["TOLERANCE", "equal_numbers", "find_dtype", "moved_spectra"]

TOLERANCE = 1e-4  # relative change of any number of a row; absolute of KS distances, which are in [0, 1]
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def find_dtype(dtype: torch.dtype | str | None, windows: Windows | None = None) -> torch.dtype | None:
    """Return the dtype of the computation by its name.

    Raises:
        ArgumentError: It is not float64 or float32.
        WindowError: It is float32, and the analysis has windows.

    Example:
        >>> find_dtype("float32")
        torch.float32
    """
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in _DTYPES.values():
        raise ArgumentError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
    if found is torch.float32 and windows is not None:
        raise WindowError("float32 is for full matrices: leave out windows (--farms), or dtype")
    return found


def moved_spectra(spectrum: Spectrum) -> Iterator[Spectrum]:
    """Yield a spectrum twice with every eigenvalue moved by its float32 rounding error, neighbours in turn up and down.

    The error of an eigenvalue is a fraction of itself, plus ``2 eps ||x|| / sqrt(min(shape))``, the size of an error
    matrix along one eigenvector, with all eigenvalues x. The fraction is ``2 sqrt(max(shape)) eps``, twice the bound of
    Higham and Mary 2019; for the 40 % smallest and the 5 % largest ``min(shape) / 10 eps`` if that is larger. Zeros
    stay. In Gaussian and heavy-tailed matrices of 256 to 4096 columns and 1 to 4 times as many rows, errors beyond the
    second term were at most 1.8 ``sqrt(max(shape))`` eps of an eigenvalue in the middle and 210 eps at the upper end.
    """
    values, eps = spectrum.eigenvalues, torch.finfo(torch.float32).eps
    middle, common = 2 * math.sqrt(max(spectrum.shape)), 2 / math.sqrt(min(spectrum.shape))
    own = torch.full_like(values, max(middle, min(spectrum.shape) / 10))
    own[math.ceil(0.4 * len(values)) : math.floor(0.95 * len(values))] = middle
    errors = eps * (own * values + common * torch.linalg.vector_norm(values))
    turns = torch.ones_like(values)
    turns[::2] = -1
    smallest = torch.finfo(torch.float64).eps * float(values[-1])
    for sign in (turns, -turns):
        moved = torch.where(values > 0, (values + sign * errors).clamp(min=smallest), 0.0)
        yield replace(spectrum, eigenvalues=moved.sort().values)


def equal_numbers(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Return whether all values are equal, floats up to the tolerance, KS distances absolutely; NaN equals NaN."""
    return all(_equal(value, other[name], TOLERANCE if "ks_distance" in name else 0.0) for name, value in one.items())


def _equal(one: object, other: object, absolute: float) -> bool:
    if not isinstance(one, float) or not isinstance(other, float):
        return one == other
    close = math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=absolute)
    return close or (math.isnan(one) and math.isnan(other))
