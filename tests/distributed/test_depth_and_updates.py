"""Recipes by depth, gradual unfreezing and spectra of updates give the same on several processes as on one."""

from __future__ import annotations

import dataclasses
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tempbalance as tb
from tempbalance.balance import recipes
from tempbalance.errors import BalanceError

from .loops import LAZY, RECIPE, equal, make, make_net, train, trained, units_of, weights_of
from .worlds import run

UPDATE = dataclasses.replace(RECIPE, spectrum_of="update")
LAZY_UPDATE = dataclasses.replace(LAZY, spectrum_of="update")
STEPS = 8


@pytest.mark.parametrize("recipe", [recipes.layerwise_decay(decay=0.5), UPDATE, LAZY_UPDATE], ids=lambda r: r.name)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_run_on_shared_data_is_that_of_a_single_process(engine, recipe):
    expected = trained("none", recipe)
    for rank in run(2, trained, engine, recipe):
        assert equal(rank, expected)


def of_adapters(sharding: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(12, 24), "b": nn.Linear(24, 12)})
    config = peft.LoraConfig(r=12, target_modules=["a", "b"], init_lora_weights=False)
    layers = peft.inject_adapter_in_model(config, net)
    model = nn.Sequential(layers["a"], nn.ReLU(), layers["b"])
    if sharding:
        fully_shard(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    balancer = tb.Balancer(optimizer, model, UPDATE)
    train(model, optimizer, 5, shared=True)
    before = weights_of(model)
    balancer.refresh()
    return {"units": units_of(balancer), "weights": weights_of(model), "left alone": equal(before, weights_of(model))}


def test_alpha_of_an_update_computed_from_shards_is_that_of_a_single_process():
    expected = of_adapters(False)
    assert all(multiplier != 1 for _, _, multiplier in expected["units"])
    for rank in run(2, of_adapters, True):
        assert rank["left alone"]
        assert [name for name, *_ in rank["units"]] == [name for name, *_ in expected["units"]]
        for ours, theirs in zip(rank["units"], expected["units"], strict=True):
            assert ours[1:] == pytest.approx(theirs[1:], rel=1e-3)


def unfrozen(engine: str) -> dict[str, Any]:
    """Unfreeze one more part every two steps, the last one at step 6."""
    if engine == "ddp":
        model = DistributedDataParallel(make_net(), find_unused_parameters=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    else:
        model, optimizer = make(engine)
    tb.Balancer(optimizer, model, recipes.gradual_unfreezing(), steps_per_epoch=2)
    free = []
    train(
        model,
        optimizer,
        STEPS,
        shared=True,
        at_step=lambda _: free.append(sum(p.requires_grad for p in model.parameters())),
    )
    return {"weights": weights_of(model), "free": free}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_unfreezing_on_shared_data_is_that_of_a_single_process(engine):
    expected = unfrozen("none")
    assert expected["free"] == [6, 6, 10, 10, 14, 14, 16, 16]
    for rank in run(2, unfrozen, engine):
        assert equal(rank, expected)


def unfrozen_in_mixed_precision() -> list[set[torch.dtype]]:
    model = make_net()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for part in (*model.blocks, model):
        fully_shard(part, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tb.Balancer(optimizer, model, recipes.gradual_unfreezing(), steps_per_epoch=2)
    seen = []
    train(
        model,
        optimizer,
        STEPS,
        at_step=lambda _: seen.append({p.grad.dtype for p in model.parameters() if p.grad is not None}),
    )
    return seen


def test_unfrozen_parameters_have_gradients_in_the_precision_of_fsdp2():
    for rank in run(2, unfrozen_in_mixed_precision):
        assert rank == [{torch.float32}] * STEPS


def refusals() -> list[str]:
    messages = []
    for model in (make_net(), make("ddp")[0]):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            tb.Balancer(optimizer, model, recipes.gradual_unfreezing(), steps_per_epoch=2)
        except BalanceError as error:
            messages.append(str(error))
    return messages


def test_unfreezing_is_refused_if_ddp_would_lose_or_wait_for_gradients():
    for bare, strict in run(2, refusals):
        assert "before the balancer is built" in bare
        assert "find_unused_parameters=True" in strict
