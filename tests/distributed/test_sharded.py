"""FSDP2: a weight is gathered only while it is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import tempbalance as tb
from tempbalance.layers import find_weights

from .loops import (
    FITTED,
    LAZY,
    RECIPE,
    alone,
    equal,
    full_tensor,
    make,
    make_net,
    state_of,
    train,
    trained,
    units_of,
    weights_of,
)
from .worlds import run

ROWS, COLUMNS = 40, 24


def tensors_of(numbers: int) -> int:
    """Return how many pieces of memory of so many float32 numbers exist."""
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter)]
    return len({each.data_ptr() for each in tensors if each.untyped_storage().nbytes() == 4 * numbers})


@contextlib.contextmanager
def calling(function: Callable[[DTensor], None]) -> Iterator[None]:
    """Call a function after each gathering of a DTensor."""
    gather = DTensor.full_tensor

    def called(tensor: DTensor, **options: Any) -> torch.Tensor:
        full = gather(tensor, **options)
        function(tensor)
        return full

    with mock.patch.object(DTensor, "full_tensor", called):
        yield


@dataclasses.dataclass(frozen=True)
class Counting(tb.Hill):
    """Notes how many full weights are in memory during each fit."""

    counts: tuple[list[int], ...] = ([],)

    def fit_tails(self, eigenvalues):
        self.counts[0].append(tensors_of(ROWS * COLUMNS))
        return super().fit_tails(eigenvalues)


def full_weights_in_memory() -> tuple[list[int], list[int]]:
    model = nn.Sequential(*(nn.Linear(COLUMNS, ROWS) for _ in range(7)))
    fully_shard(model)
    gathered, fitted = [], []
    recipe = dataclasses.replace(RECIPE, estimator=Counting(counts=(fitted,)))
    balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.1), model, recipe)
    with calling(lambda _: gathered.append(tensors_of(ROWS * COLUMNS))):
        balancer.refresh()
    assert len(gathered) == 7
    assert tensors_of(ROWS * COLUMNS) == 0
    return gathered, fitted


def test_a_process_has_two_full_weights_in_memory_at_most():
    for gathered, fitted in run(2, full_weights_in_memory):
        assert 1 <= max(gathered) <= 2
        assert 1 <= max(fitted) <= 2


class Fused(nn.Module):
    """Two modules with fused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)
        self.lstm = nn.LSTM(16, 12)


def parts_of_fused_weights() -> dict[str, Any]:
    torch.manual_seed(0)
    model = Fused()
    expected = [(weight.name, weight.shape) for weight in find_weights(model)[0]]
    unsharded = tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.1), model, RECIPE)
    unsharded.refresh()
    for child in model.children():
        fully_shard(child)
    found = [(weight.name, weight.shape) for weight in find_weights(model, sharded=True)[0]]
    balancer = tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.1), model, RECIPE)
    made = []
    with calling(lambda tensor: made.append(tuple(tensor.shape))):
        balancer.refresh()
    return {"expected": expected, "found": found, "units": (units_of(unsharded), units_of(balancer)), "made": made}


def test_parts_of_a_sharded_fused_parameter_have_the_same_alphas_and_it_is_gathered_once():
    for rank in run(2, parts_of_fused_weights):
        assert rank["found"] == rank["expected"]
        assert [name for name, _ in rank["found"]][:4] == [
            *(f"attention.in_proj_weight:{part}" for part in "qkv"),
            "attention.out_proj.weight",
        ]
        assert equal(*rank["units"])
        assert sorted(rank["made"]) == sorted([(48, 16), (16, 16), (48, 16), (48, 12)])


def after_an_evaluation() -> dict[str, Any]:
    model, optimizer = make("fsdp")

    def evaluate() -> None:
        with torch.no_grad():
            model(torch.ones(4, 12))  # leaves the parameters of the root whole, in other tensors than the optimizer's

    evaluate()
    balancer = tb.Balancer(optimizer, model, dataclasses.replace(LAZY, tolerance=1e-9))
    train(model, optimizer, 3)
    evaluate()
    balancer.refresh()
    units, weights = units_of(balancer), weights_of(model)
    fitted = [dict(model.named_parameters())[f"{name}.weight"] for name in FITTED]
    moved = [not torch.equal(full_tensor(p), full_tensor(optimizer.state[p]["tempbalance_reference"])) for p in fitted]
    train(model, optimizer, 5, start=3)
    return {"units": units, "weights": weights, "moved": moved}


def test_weights_gathered_by_an_evaluation_are_sharded_again():
    for rank in run(2, after_an_evaluation):
        assert equal(rank["units"], alone(rank["weights"]))
        assert rank["moved"] == [False] * 6  # references are of the moment of the refresh


def some_are_not_sharded() -> dict[str, Any]:
    net = make_net()
    for block in net.blocks:
        fully_shard(block)  # stem, neck and head stay plain parameters, the same on all
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)
    balancer = tb.Balancer(optimizer, net, LAZY)
    train(net, optimizer, 3, shared=True)
    return {"units": units_of(balancer), "state": state_of(balancer), "weights": weights_of(net)}


def test_a_model_that_is_sharded_in_part_is_balanced():
    first, second = run(2, some_are_not_sharded)
    assert equal(first["state"], second["state"])
    assert equal(first["weights"], second["weights"])
    assert {name for name, alpha, _ in first["units"] if not math.isnan(alpha)} == set(FITTED)


def two_replicas() -> dict[str, Any]:
    net = make_net()
    fully_shard(net, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    balancer = tb.Balancer(optimizer, net, LAZY)
    train(net, optimizer, 4, shared=True)
    return {"state": state_of(balancer), "measured": [refresh.measured for refresh in balancer.history]}


def test_replicas_of_a_sharded_model_measure_the_same_weights():
    expected = trained("none", LAZY, 4)
    for rank in run(4, two_replicas):
        assert equal(rank["state"], expected["state"])
        assert rank["measured"] == expected["measured"]
