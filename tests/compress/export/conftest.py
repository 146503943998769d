"""Allocations of sparsity with given numbers of zeros."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from torch import nn

from tempbalance.compress import Allocation, LayerAllocation


def allocation_of(zeros: dict[str, int], shapes: dict[str, tuple[int, ...]], group: int | None = None) -> Allocation:
    layers = tuple(
        LayerAllocation(name=n, unit=n, shape=shapes[n], alpha=3.0, stderr=0.1, zeros=z) for n, z in zeros.items()
    )
    total = sum(layer.zeros for layer in layers) / sum(layer.numel for layer in layers)
    return Allocation(source="m", budget=total, method="alpha", unit="layer", layers=layers, group=group)


@pytest.fixture(name="allocation_of", scope="session")
def _allocation_of() -> Callable[..., Allocation]:
    """``allocation_of(zeros, shapes, group)``, both by name."""
    return allocation_of


@pytest.fixture(scope="session")
def allocation_for() -> Callable[..., Allocation]:
    """``allocation_for(model, zeros)``: each linear layer inside a block has its own sparsity."""

    def make(
        model: nn.Module, zeros: Callable[[int, int], int] = lambda place, numel: numel * (place + 1) // 20
    ) -> Allocation:
        shapes = {f"{n}.weight": tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        shapes.pop("lm_head.weight", None)
        counts = {name: zeros(place, math.prod(shape)) for place, (name, shape) in enumerate(shapes.items())}
        return allocation_of(counts, shapes)

    return make


@pytest.fixture(scope="session")
def zeros_of() -> Callable[[nn.Module, Allocation], dict[str, int]]:
    """Count the zeros of the weights of an allocation in a model."""
    return lambda model, allocation: {name: int((model.get_parameter(name) == 0).sum()) for name in allocation}
