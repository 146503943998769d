"""FSDP1, DeepSpeed and asynchronous measuring on several processes are refused with what to do instead."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import tempbalance as tb
from tempbalance.errors import BalanceError

from .loops import RECIPE
from .test_failures import error_of
from .worlds import run


def wrapped(module: nn.Module, **options) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), **options)


def refused_by_the_balancer(inner: bool, use_orig_params: bool) -> str:
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    if inner:
        net[1] = wrapped(net[1])
    else:
        net = wrapped(net, use_orig_params=use_orig_params)
    return error_of(BalanceError, tb.Balancer, torch.optim.SGD(net.parameters(), lr=1.0), net, RECIPE)


@pytest.mark.parametrize(("inner", "use_orig_params"), [(False, False), (False, True), (True, False)])
def test_fsdp1_is_refused(inner, use_orig_params):
    for message in run(2, refused_by_the_balancer, inner, use_orig_params):
        assert "FSDP1 (FullyShardedDataParallel) flattens parameters into vectors" in message
        assert "torch.distributed.fsdp.fully_shard(model), and build the optimizer after it" in message


def refused_with_a_delay() -> str:
    net = nn.Linear(16, 16)
    return error_of(BalanceError, tb.Balancer, torch.optim.SGD(net.parameters(), lr=1.0), net, RECIPE, delay=1)


def test_asynchronous_measuring_on_several_processes_is_refused():
    for message in run(2, refused_with_a_delay):
        assert "the 2 processes share a refresh, which cannot be asynchronous; leave delay out" in message


def refused_with_overlap() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1.0, overlap_with_ddp=True)
    return error_of(BalanceError, tb.Balancer, optimizer, model, RECIPE)


def test_a_zero_redundancy_optimizer_that_steps_in_the_backward_pass_is_refused():
    for message in run(2, refused_with_overlap):
        assert "ZeroRedundancyOptimizer updates parameters during backward(), not in step()" in message
        assert "overlap_with_ddp" in message


def deepspeed(name: str, *bases: type) -> type:
    """Make a class that looks like one of DeepSpeed."""
    return types.new_class(name, bases, exec_body=lambda body: body.update(__module__="deepspeed.runtime.engine"))


class TestDeepSpeed:
    def test_a_deepspeed_engine_as_model_is_refused(self):
        class_ = deepspeed("DeepSpeedEngine", nn.Module)
        engine = class_()
        engine.module = nn.Linear(16, 16)
        with pytest.raises(BalanceError, match=r"train with FSDP2 .* or DDP"):
            tb.Balancer(torch.optim.SGD(engine.parameters(), lr=1.0), engine, RECIPE)

    def test_parameters_of_deepspeed_stage_3_are_refused(self):
        net = nn.Linear(16, 16)
        net.weight.ds_id = 7
        with pytest.raises(BalanceError, match=r"train with FSDP2 .* or DDP"):
            tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net, RECIPE)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_deepspeed_optimizer_is_refused_also_in_a_wrapper(self, wrapped):
        net = nn.Linear(16, 16)
        optimizer = deepspeed("DeepSpeedZeroOptimizer")()
        optimizer.optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        given = types.SimpleNamespace(optimizer=optimizer) if wrapped else optimizer
        with pytest.raises(BalanceError, match=r"train with FSDP2 .* or DDP"):
            tb.Balancer(given, net, RECIPE)
