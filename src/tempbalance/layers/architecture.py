"""Checkpoints whose configuration says what their layers are: the architecture is built without data."""

from __future__ import annotations

from tempbalance.layers.names import TensorStore, name_candidates
from tempbalance.layers.weights import Candidate

__all__ = ["checkpoint_candidates"]


def checkpoint_candidates(store: TensorStore) -> list[Candidate]:
    """List the weights of a state dict or checkpoint."""
    return name_candidates(store)
