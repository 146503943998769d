"""A balancer with Accelerate: built before or after ``prepare``, with accumulated gradients, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tempbalance as tb

from .conftest import NEUTRAL, applied, make_net, same, states_of

accelerate = pytest.importorskip("accelerate")
ACCUMULATION, BATCHES = 2, 12


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps its settings in the process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Run:
    """A prepared training run; ``recipe=None`` is one without tempbalance."""

    def __init__(self, recipe: tb.Recipe | None, *, late: bool = False) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
        net = make_net()
        optimizer: Any = torch.optim.AdamW(net.parameters(), lr=1e-2)
        if recipe is not None and not late:
            self.balancer = tb.Balancer(optimizer, net, recipe)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BATCHES // ACCUMULATION)
        data = torch.randn(4 * BATCHES, 24, generator=torch.Generator().manual_seed(1))
        prepared = self.accelerator.prepare(net, optimizer, scheduler, DataLoader(TensorDataset(data), batch_size=4))
        self.net, self.optimizer, self.scheduler, self.loader = prepared
        if recipe is not None and late:
            self.balancer = tb.Balancer(self.optimizer, self.net, recipe)
        self.scheduled: list[list[float]] = []

    def train(self, start: int = 0, stop: int = BATCHES) -> Run:
        for number, (x,) in enumerate(self.loader):
            if not start <= number < stop:
                continue
            with self.accelerator.accumulate(self.net):
                if self.accelerator.sync_gradients:
                    self.scheduled.append(self.scheduler.get_last_lr())
                self.accelerator.backward(self.net(x).square().mean())
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
        return self


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
class TestPrepare:
    def test_neutral_multipliers_change_no_bit(self, make_recipe, late):
        plain = Run(None).train()
        neutral = Run(make_recipe(assignment=NEUTRAL), late=late).train()
        assert same(states_of(plain.net), states_of(neutral.net))
        assert [rates[0] for rates in plain.scheduled] == [rates[0] for rates in neutral.scheduled]

    def test_refreshes_count_optimizer_steps(self, make_recipe, late):
        run = Run(make_recipe(), late=late).train()
        assert [refresh.step for refresh in run.balancer.history] == [0, 2, 4]  # of 6 steps with 12 batches

    def test_the_rate_is_multiplier_times_scheduled_rate(self, make_recipe, late):
        run = Run(make_recipe(), late=late)
        seen: list[dict[str, float]] = []
        applied(run.balancer, run.net, seen)
        run.train()
        history = [refresh for refresh in run.balancer.history for _ in range(2)]
        assert len(seen) == len(run.scheduled) == len(history) == 6
        for rates, scheduled, refresh in zip(seen, run.scheduled, history, strict=True):
            assert len(set(scheduled)) == 1
            multipliers = {unit.name: unit.multiplier for unit in refresh.units}
            assert rates == {name: scheduled[0] * multipliers[name] for name in rates}
        assert min(multipliers.values()) == 0.5

    @pytest.mark.parametrize("tolerance", [0.0, 0.2])
    def test_a_resumed_run_is_bit_identical(self, make_recipe, late, tolerance, tmp_path: Path):
        recipe = make_recipe(tolerance=tolerance)
        whole = Run(recipe, late=late).train()
        Run(recipe, late=late).train(stop=6).accelerator.save_state(str(tmp_path))
        resumed = Run(recipe, late=late)
        resumed.accelerator.load_state(str(tmp_path))
        resumed.train(start=6)
        assert same(states_of(whole.net), states_of(resumed.net))
        assert resumed.balancer.units == whole.balancer.units
        assert [r.step for r in resumed.balancer.history] == [4]

    def test_states_without_and_with_balancing_resume_each_other(self, make_recipe, late, tmp_path: Path):
        neutral = make_recipe(assignment=NEUTRAL)
        whole = Run(None).train()
        for saved, resumed in ((None, neutral), (neutral, None)):
            folder = str(tmp_path / ("plain" if saved is None else "balanced"))
            Run(saved, late=late).train(stop=6).accelerator.save_state(folder)
            run = Run(resumed, late=late)
            run.accelerator.load_state(folder)
            run.train(start=6)
            assert same(states_of(whole.net), states_of(run.net))
            if resumed is not None:
                assert [r.step for r in run.balancer.history] == [0, 2]  # counted from the state
