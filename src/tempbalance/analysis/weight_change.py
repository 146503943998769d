"""The change of one weight between two states of a model: its size, and the spectrum of the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tempbalance.errors import WeightError
from tempbalance.layers import Weight
from tempbalance.spectra import as_matrices, spectra

__all__ = ["WeightChange", "effective_rank", "weight_change"]

_CHUNK = 1 << 20  # entries whose squares are summed at a time
_TOP = 8  # singular values that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """The change of one weight, ``dW = after - before``.

    Attributes:
        relative: ``||dW|| / ||before||``, Frobenius norms; infinite if the weight was zero before.
        norm_before: Frobenius norm before.
        norm_after: Frobenius norm after.
        identical: Whether all entries are equal, in the narrower of both dtypes.
        sparsity_before: Fraction of entries that are exactly zero before.
        sparsity_after: The same, after.
        stable_rank: ``||dW||^2`` over the largest squared singular value of ``dW``; of several matrices, the mean.
            NaN without a change, or if it was not asked for.
        effective_rank: ``exp`` of the entropy of the normalised singular values of ``dW`` (Roy and Vetterli 2007); of
            several matrices, that of all singular values over their number.
        singular_values: The largest singular values of ``dW``, descending, at most 8.
    """

    relative: float
    norm_before: float
    norm_after: float
    identical: bool
    sparsity_before: float
    sparsity_after: float
    stable_rank: float = math.nan
    effective_rank: float = math.nan
    singular_values: tuple[float, ...] = ()


def weight_change(
    before: Weight, after: Weight, *, device: torch.device | str | None = None, spectrum: bool = True
) -> WeightChange:
    """Return the change of one weight between two models, without ranks and singular values if not ``spectrum``.

    Both are read, and nothing else. Entries are subtracted in float32, or in float64 if one of the weights has it: the
    error is one rounding of the difference itself. The device is by default that of the second weight.

    Raises:
        WeightError: The shapes differ, or the weights contain NaN or Inf.
    """
    if before.shape != after.shape:
        raise WeightError(f"the shape was {before.shape} and is {after.shape}")
    two = after.load().detach()
    two = two if device is None else two.to(device)
    one = before.load().detach().to(two.device)
    identical = _equal(one, two)
    dtype = torch.float64 if torch.float64 in {one.dtype, two.dtype} else torch.float32
    if one.is_complex() or two.is_complex():
        dtype = torch.promote_types(torch.promote_types(one.dtype, two.dtype), torch.complex64)
    norm_before, norm_after = _norm(one), _norm(two)
    sparsity_before, sparsity_after = (_sparsity(each) for each in (one, two))
    update = two.to(dtype, copy=True).sub_(one.to(dtype))
    del one, two
    norm = _norm(update)
    if not math.isfinite(norm_before + norm_after):
        raise WeightError("weights are NaN or Inf")
    relative = 0.0 if norm == 0.0 else norm / norm_before if norm_before else math.inf
    change = WeightChange(
        relative=relative,
        norm_before=norm_before,
        norm_after=norm_after,
        identical=identical,
        sparsity_before=sparsity_before,
        sparsity_after=sparsity_after,
    )
    if norm == 0.0 or not spectrum:
        return change
    found = spectra([as_matrices(update, after.layout)])[0]
    values = found.eigenvalues.flip(0).sqrt()
    return replace(
        change,
        stable_rank=found.stable_rank,
        effective_rank=effective_rank(values) / found.num_matrices,
        singular_values=tuple(values[:_TOP].tolist()),
    )


def effective_rank(singular_values: Tensor) -> float:
    """Return ``exp(-sum_i p_i log p_i)`` with ``p_i = s_i / sum_j s_j`` (Roy and Vetterli 2007, definition 1).

    At least one singular value must be positive.

    Example:
        >>> round(effective_rank(torch.tensor([3.0, 3.0, 0.0])), 6)
        2.0
    """
    shares = singular_values[singular_values > 0].double()
    shares = shares / shares.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


def _equal(one: Tensor, two: Tensor) -> bool:
    """Return whether all entries are equal, after rounding to the narrower dtype if the dtypes differ."""
    if one.dtype == two.dtype:
        return torch.equal(one, two)
    wide, narrow = sorted((one, two), key=lambda tensor: -tensor.dtype.itemsize)
    return torch.equal(wide.to(narrow.dtype), narrow)


def _norm(tensor: Tensor) -> float:
    """Return the Frobenius norm, summed in float64 a chunk at a time."""
    return math.hypot(*(float(torch.linalg.vector_norm(chunk)) for chunk in _chunks(tensor)))


def _sparsity(tensor: Tensor) -> float:
    """Return the fraction of entries that are exactly zero."""
    return 1 - sum(int(chunk.count_nonzero()) for chunk in _chunks(tensor)) / tensor.numel()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the entries in float64, a chunk at a time."""
    dtype = torch.complex128 if tensor.is_complex() else torch.float64
    return (chunk.to(dtype) for chunk in torch.split(tensor.reshape(-1), _CHUNK))
