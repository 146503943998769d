"""Weight matrices that are stored as one vector, as in e3nn; norms are vectors, too, but not longer than an axis."""

from __future__ import annotations

from collections.abc import Sequence

from tempbalance.layers.weights import Candidate, Role
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["drop_norms", "vector_role"]

_REASON = (
    "its matrices are stored as one vector (as by e3nn, or in a shard), and their shapes are not known: to analyse "
    "them, pass a state dict of the matrices"
)


def vector_role() -> Role:
    """Return the role of a parameter ``weight`` with one axis."""
    return Role(kind="parameter", reason=_REASON)


def drop_norms(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of a model, without vectors that are no longer than the longest axis of its matrices.

    Example:
        >>> import torch
        >>> from tempbalance.layers import find_weights
        >>> tensors = {"a.weight": torch.ones(4, 8), "norm.weight": torch.ones(8), "b.weight": torch.ones(32)}
        >>> [skipped.name for skipped in find_weights(tensors)[1]]
        ['b.weight']
    """
    sizes = [max(candidate.shape) for candidate in candidates if len(candidate.shape) >= MATRIX_NDIM]
    longest = max(sizes, default=0)
    return [c for c in candidates if c.role.reason != _REASON or c.shape[0] > longest > 0]
