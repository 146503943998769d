"""On a GPU: the numbers of the CPU, for analyses and for asynchronous measurement."""

from __future__ import annotations

import dataclasses

import pytest
import safetensors.torch
import torch

import tempbalance as tb

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=5), tolerance=0.05)


@pytest.mark.parametrize("windows", [None, tb.FARMS()], ids=["whole", "farms"])
def test_the_analysis_of_a_checkpoint_equals_that_on_the_cpu(tmp_path, windows):
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 100), (100, 300), (128, 128)] * 4 + [(1200, 1000)] * 3
    state = {f"w{i}": torch.randn(shape, generator=generator).bfloat16() for i, shape in enumerate(shapes)}
    state["bad"] = torch.full((40, 40), torch.nan)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    here, there = (
        tb.analyze(tmp_path / "model.safetensors", windows=windows, device=device, progress=False)
        for device in ("cpu", "cuda")
    )
    assert [row.name for row in there.layers] == [row.name for row in here.layers]
    assert there.skipped == here.skipped
    for one, other in zip(here.layers, there.layers, strict=True):
        assert other.lambda_max == pytest.approx(one.lambda_max, rel=1e-10)
        assert other.alpha == pytest.approx(one.alpha, rel=1e-6, nan_ok=True)


def trained(recipe: tb.Recipe, delay: int) -> tuple[dict[str, torch.Tensor], list[tb.balance.Refresh]]:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(64, 64) for _ in range(3)]
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), *layers, torch.nn.Linear(64, 3)).cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    balancer = tb.Balancer(optimizer, net, recipe, delay=delay)
    target = (torch.arange(16) % 3).cuda()
    for _ in range(12):
        torch.nn.functional.cross_entropy(net(torch.randn(16, 8).cuda()), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict(), balancer.history


def test_asynchronous_measurement_has_the_same_bits_each_time():
    first, second = (trained(RECIPE, 3)[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_asynchronous_alphas_equal_synchronous_ones():
    neutral = dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0))
    in_place, beside = (trained(neutral, delay)[1] for delay in (0, 3))
    for one, other in zip(in_place, beside, strict=False):
        for a, b in zip(one.units, other.units, strict=True):
            assert a.alpha == pytest.approx(b.alpha, rel=1e-9, nan_ok=True)
