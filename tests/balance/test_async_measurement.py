"""Asynchronous measuring: results take effect a fixed number of steps later, whatever their timing."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.errors import BalanceError, NumericsWarning, RefreshError
from tempbalance.released.recipes_as_released import EveryAsReleased, OneStepLate

from .conftest import Net, assert_same_bits, batches, in_steps, make_net, train

DELAY = 3
RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=5))
LAZY = dataclasses.replace(RECIPE, tolerance=0.05)


@dataclasses.dataclass(frozen=True)
class Slow(tb.Hill):
    """A slow estimator."""

    seconds: float = 0.05

    def __repr__(self) -> str:
        return repr(tb.Hill())  # the same recipe for a saved state

    def fit_tails(self, eigenvalues: torch.Tensor) -> Any:
        time.sleep(self.seconds)
        return super().fit_tails(eigenvalues)


@dataclasses.dataclass(frozen=True)
class Broken(tb.Hill):
    def fit_tails(self, eigenvalues: torch.Tensor) -> Any:
        raise RuntimeError("no luck")


def balanced(net: Net, recipe: tb.Recipe = RECIPE, **options: Any) -> tuple[torch.optim.Optimizer, tb.Balancer]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    return optimizer, tb.Balancer(optimizer, net, recipe, **{"delay": DELAY, **options})


def trained(
    recipe: tb.Recipe, steps: int = 12, **options: Any
) -> tuple[dict[str, torch.Tensor], list[tb.balance.Refresh]]:
    net = make_net()
    optimizer, balancer = balanced(net, recipe, **options)
    train(net, optimizer, steps=steps)
    return net.state_dict(), balancer.history


class TestWhen:
    def test_alphas_are_those_of_the_weights_when_the_measurement_started(self, net: Net):
        optimizer, balancer = balanced(net)
        alphas: list[dict[str, float]] = []

        def note(*_: Any) -> None:
            weights = {unit.name: net.get_submodule(unit.name).weight for unit in balancer.units}
            alphas.append({name: tb.Hill().fit(tb.weight_spectrum(weight)).alpha for name, weight in weights.items()})

        handle = optimizer.register_step_pre_hook(note)
        train(net, optimizer, steps=12)
        handle.remove()
        assert [(refresh.step, refresh.applied) for refresh in balancer.history] == [(0, 3), (5, 8)]
        for refresh in balancer.history:
            for unit in refresh.units:
                assert unit.alpha == pytest.approx(alphas[refresh.step][unit.name], rel=1e-12, nan_ok=True)

    def test_multipliers_take_effect_exactly_delay_steps_later(self, net: Net):
        optimizer, balancer = balanced(net)
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=9)
        seen = [set(rate[f"{unit.name}.weight"] for unit in balancer.units) for rate in rates]
        assert seen[:3] == [{3e-3}] * 3
        assert seen[3] == seen[7] == {3e-3 * unit.multiplier for unit in balancer.history[0].units}
        assert seen[8] == {3e-3 * unit.multiplier for unit in balancer.history[1].units}

    def test_a_ramp_begins_when_the_multipliers_take_effect(self, net: Net):
        optimizer, balancer = balanced(net, dataclasses.replace(RECIPE, ramp=2, every=tb.Every(steps=100)))
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=6)
        for unit in balancer.units:
            expected = [1 + (unit.multiplier - 1) * share for share in (0, 0, 0, 0.5, 1, 1)]
            assert [rate[f"{unit.name}.weight"] / 3e-3 for rate in rates] == pytest.approx(expected)

    @pytest.mark.parametrize("recipe", [RECIPE, LAZY], ids=["all", "tolerance"])
    def test_results_do_not_depend_on_the_speed_of_the_measurement(self, recipe: tb.Recipe):
        fast, _ = trained(recipe)
        slow, _ = trained(dataclasses.replace(recipe, estimator=Slow()))
        assert_same_bits(fast, slow)

    def test_asynchronous_and_synchronous_measurements_measure_the_same_weights(self):
        recipe = dataclasses.replace(LAZY, assignment=tb.assign.Linear(1.0, 1.0))  # the same training in both
        _, beside = trained(recipe, steps=24)
        _, in_place = trained(recipe, steps=24, delay=0)
        assert [refresh.measured for refresh in beside] == [refresh.measured for refresh in in_place]
        assert {refresh.measured for refresh in beside} != {beside[0].measured}

    @pytest.mark.parametrize(
        "recipe",
        [
            dataclasses.replace(RECIPE, spectrum_of="update"),
            dataclasses.replace(RECIPE, windows=tb.FARMS()),
            dataclasses.replace(RECIPE, unit="block", every=tb.Every(steps=3)),
            OneStepLate(name="test", assignment=RECIPE.assignment, every=RECIPE.every),
        ],
        ids=["update", "farms", "delay equal to the interval", "recipe with a lag of its own"],
    )
    def test_asynchronous_alphas_are_the_synchronous_ones(self, recipe: tb.Recipe):
        neutral = dataclasses.replace(recipe, assignment=tb.assign.Linear(1.0, 1.0))
        _, beside = trained(neutral)
        _, in_place = trained(neutral, delay=0)
        assert len(beside) >= 2
        for one, other in zip(beside, in_place, strict=False):
            assert one.step == other.step
            for a, b in zip(one.units, other.units, strict=True):
                assert a.alpha == pytest.approx(b.alpha, rel=1e-12, nan_ok=True)

    def test_training_does_not_wait_for_the_measurement(self, net: Net):
        optimizer, balancer = balanced(net, dataclasses.replace(RECIPE, estimator=Slow(seconds=0.5)))
        began = time.perf_counter()
        train(net, optimizer, steps=1)
        assert time.perf_counter() - began < 0.4
        assert balancer.history == []
        train(net, optimizer, steps=4, start=1)
        assert len(balancer.history) == 1

    def test_the_measurement_uses_one_thread_and_training_keeps_its_number(self, net: Net):
        threads: dict[str, int] = {}

        class Counting(tb.Hill):
            def fit_tails(self, eigenvalues: torch.Tensor) -> Any:
                threads[threading.current_thread().name] = torch.get_num_threads()
                return super().fit_tails(eigenvalues)

        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            optimizer, _ = balanced(net, dataclasses.replace(RECIPE, estimator=Counting()))
            train(net, optimizer, steps=4)
            fresh: list[int] = []
            other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
            other.start()
            other.join()
            assert (torch.get_num_threads(), fresh) == (2, [2])
        finally:
            torch.set_num_threads(before)
        assert list(threads.values()) == [1]
        assert threading.main_thread().name not in threads


class TestResume:
    @pytest.mark.parametrize("recipe", [RECIPE, LAZY, dataclasses.replace(RECIPE, spectrum_of="update", ramp=2)])
    @pytest.mark.parametrize("saved", [1, 2, 3, 7], ids="saved after {} steps".format)
    def test_a_run_saved_during_a_measurement_ends_in_the_same_bits(
        self, tmp_path: Path, recipe: tb.Recipe, saved: int
    ):
        whole, history = trained(recipe)
        net = make_net()
        optimizer, first = balanced(net, dataclasses.replace(recipe, estimator=Slow()))
        train(net, optimizer, steps=saved)
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")

        state = torch.load(tmp_path / "checkpoint", weights_only=True)
        resumed = make_net(1)
        fresh, balancer = balanced(resumed, recipe)
        resumed.load_state_dict(state["net"])
        fresh.load_state_dict(state["optimizer"])
        train(resumed, fresh, steps=12, start=saved)
        assert_same_bits(resumed.state_dict(), whole)
        assert balancer.units == history[-1].units
        train(net, optimizer, steps=12, start=saved)  # and so does the one that was saved
        assert_same_bits(net.state_dict(), whole)
        assert [(each.step, each.applied) for each in first.history] == [(0, 3), (5, 8)]

    def test_loading_a_state_discards_the_measurement_in_progress(self, net: Net):
        optimizer, balancer = balanced(net)
        other = make_net()
        state = balanced(other)[0].state_dict()
        train(net, optimizer, steps=2)
        optimizer.load_state_dict(state)
        net.load_state_dict(other.state_dict())
        train(net, optimizer, steps=12)
        assert_same_bits(net.state_dict(), trained(RECIPE)[0])
        assert [refresh.step for refresh in balancer.history] == [0, 5]


class TestEnds:
    def test_training_may_end_during_a_measurement(self, net: Net):
        optimizer, balancer = balanced(net)
        train(net, optimizer, steps=2)
        assert {unit.multiplier for unit in balancer.units} == {1.0}
        assert balancer.history == []

    def test_a_balancer_removed_during_a_measurement_leaves_no_state(self, net: Net):
        optimizer, balancer = balanced(net, LAZY)
        train(net, optimizer, steps=2)
        balancer.remove()
        train(net, optimizer, steps=8, start=2)
        assert balancer.history == []
        assert all("tempbalance" not in group for group in optimizer.param_groups)
        assert all("tempbalance_reference" not in state for state in optimizer.state.values())

    def test_a_manual_refresh_replaces_the_measurement_in_progress(self, net: Net):
        optimizer, balancer = balanced(net, LAZY)
        train(net, optimizer, steps=2)
        found = balancer.refresh()
        assert (found.step, found.applied) == (2, 2)
        assert found.measured == len(balancer.units)
        train(net, optimizer, steps=6, start=2)
        assert [refresh.step for refresh in balancer.history] == [2]
        assert balancer.units == list(found.units)


class TestSafe:
    def test_an_error_is_raised_at_the_step_that_needs_the_result(self, net: Net):
        optimizer, balancer = balanced(net, dataclasses.replace(RECIPE, estimator=Broken()))
        train(net, optimizer, steps=3)
        with pytest.raises(RefreshError, match=r"started at step 0 failed: RuntimeError: no luck") as caught:
            train(net, optimizer, steps=4, start=3)
        assert isinstance(caught.value.__cause__, RuntimeError)
        train(net, optimizer, steps=5, start=3)  # who goes on does so with the multipliers as they were
        assert {unit.multiplier for unit in balancer.units} == {1.0}

    def test_an_error_of_the_measurement_is_raised_when_a_checkpoint_is_written(self, net: Net):
        optimizer, _ = balanced(net, dataclasses.replace(RECIPE, estimator=Broken()))
        train(net, optimizer, steps=1)
        with pytest.raises(RefreshError, match="no luck"):
            optimizer.state_dict()
        optimizer.state_dict()

    @pytest.mark.parametrize("recipe", [RECIPE, LAZY], ids=["all", "tolerance"])
    def test_a_nan_weight_keeps_the_multipliers_and_all_weights_are_measured_again(self, net: Net, recipe: tb.Recipe):
        optimizer, balancer = balanced(net, recipe)
        weight = net.blocks[1]["fc1"].weight
        value = weight[0, 0].item()
        with torch.no_grad():
            weight[0, 0] = math.nan
        for _step in range(3):
            optimizer.step()
        with torch.no_grad():
            weight[0, 0] = value
        with pytest.warns(NumericsWarning, match=r"step 0: blocks\.1\.fc1\.weight.*NaN"):
            optimizer.step()
        assert {unit.multiplier for unit in balancer.units} == {1.0}
        for _step in range(5):
            optimizer.step()
        assert balancer.history[1].measured == balancer.history[0].measured
        assert len({unit.multiplier for unit in balancer.units}) > 2

    def test_a_step_that_raises_and_is_repeated_changes_nothing(self, net: Net):
        optimizer, _ = balanced(net)
        broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        broken.remove()
        train(net, optimizer, steps=12)
        assert_same_bits(net.state_dict(), trained(RECIPE)[0])


class TestBadInput:
    @pytest.mark.parametrize("delay", [-1, 6])
    def test_a_delay_longer_than_the_interval_is_refused(self, net: Net, delay: int):
        with pytest.raises(BalanceError, match=rf"delay={delay}.*at most 5"):
            balanced(net, delay=delay)

    def test_a_delay_may_be_as_long_as_the_shortest_interval(self, net: Net):
        recipe = dataclasses.replace(RECIPE, every=EveryAsReleased(steps=5))  # steps 0, 4, 9, ...
        with pytest.raises(BalanceError, match="at most 4"):
            balanced(net, recipe, delay=5)
        optimizer, balancer = balanced(net, recipe, delay=4)
        train(net, optimizer, steps=9)
        assert [(refresh.step, refresh.applied) for refresh in balancer.history] == [(0, 4), (4, 8)]

    def test_a_delay_longer_than_an_epoch_is_refused(self, net: Net):
        with pytest.raises(BalanceError, match="at most 2"):
            balanced(net, dataclasses.replace(RECIPE, every=tb.Every(epochs=1)), steps_per_epoch=2)


def test_asynchronous_measuring_with_multipliers_of_one_changes_no_bit(net: Net):
    plain = make_net()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=3e-3), steps=12)
    neutral, _ = trained(dataclasses.replace(LAZY, assignment=tb.assign.Linear(1.0, 1.0)))
    assert_same_bits(neutral, plain.state_dict())


def test_asynchronous_measuring_works_with_autocast_and_a_compiled_model(net: Net):
    running = torch.compile(net, backend="eager")
    optimizer, balancer = balanced(running)
    for x, y in batches(4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(running(x), y)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
    fits = {unit.name: unit.alpha for unit in balancer.history[0].units if math.isfinite(unit.alpha)}
    before = make_net()
    for name, alpha in fits.items():
        expected = tb.Hill().fit(tb.weight_spectrum(before.get_submodule(name).weight)).alpha
        assert alpha == pytest.approx(expected, rel=1e-12)
