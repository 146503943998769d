"""The balancer: the learning rate of a step is the multiplier times the scheduled rate, and nothing else changes."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.errors import BalanceError, BalanceWarning, NumericsWarning
from tempbalance.released.recipes_as_released import EveryAsReleased, OneStepLate

from .conftest import assert_same_bits, batches, by_parameter, in_steps, make_net, train
from .optimizers import OPTIMIZERS, SCHEDULERS, STEPS

NEUTRAL = tb.Recipe(name="neutral", assignment=tb.assign.Linear(1.0, 1.0), every=tb.Every(steps=STEPS // 10))


def finished(build, scheduling, recipe: tb.Recipe | None) -> dict[str, torch.Tensor]:
    net = make_net()
    optimizer = build(net.parameters())
    if recipe is not None:
        tb.Balancer(optimizer, net, recipe)
    train(net, optimizer, scheduling(optimizer), steps=STEPS)
    return net.state_dict()


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_multipliers_of_one_change_no_bit(optimizer, schedule):
    build, scheduling = OPTIMIZERS[optimizer], SCHEDULERS[schedule]
    assert_same_bits(finished(build, scheduling, NEUTRAL), finished(build, scheduling, None))


@pytest.mark.parametrize(
    "recipe",
    [
        tb.recipes.layerwise_decay(decay=1.0),
        tb.recipes.slow_learner(fraction=1.0),
        dataclasses.replace(NEUTRAL, spectrum_of="update"),
        dataclasses.replace(NEUTRAL, assignment=tb.assign.AlphaChange(tb.assign.Damped(tb.assign.Sigmoid(0.0)))),
        dataclasses.replace(NEUTRAL, assignment=tb.assign.Times(tb.assign.LayerwiseDecay(1.0), tb.assign.Sigmoid(0.0))),
    ],
    ids=["layerwise_decay", "slow_learner", "update", "damped change", "times"],
)
def test_multipliers_of_one_from_depth_updates_and_transforms_change_no_bit(recipe):
    build, scheduling = OPTIMIZERS["AdamW foreach"], SCHEDULERS["cosine"]
    assert_same_bits(finished(build, scheduling, recipe), finished(build, scheduling, None))


def test_other_multipliers_change_the_parameters(recipe):
    build, scheduling = OPTIMIZERS["SGD"], SCHEDULERS["cosine"]
    a, b = finished(build, scheduling, recipe), finished(build, scheduling, None)
    assert not torch.equal(a["blocks.0.fc1.weight"], b["blocks.0.fc1.weight"])


class TestExact:
    @pytest.mark.parametrize("schedule", SCHEDULERS)
    @pytest.mark.parametrize("optimizer", ["SGD", "AdamW tensor lr", "Lion"])
    def test_the_applied_rate_is_multiplier_times_scheduled_rate(self, net, recipe, optimizer, schedule):
        opt = OPTIMIZERS[optimizer](net.parameters())
        balancer = tb.Balancer(opt, net, recipe)
        scheduler = SCHEDULERS[schedule](opt)
        twin_opt = OPTIMIZERS[optimizer](make_net().parameters())
        twin = SCHEDULERS[schedule](twin_opt)
        applied = in_steps(opt, net)
        for x, y in batches(STEPS):
            scheduled = twin_opt.param_groups[0]["lr"]
            nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
            multipliers = by_parameter(balancer)
            for name, rate in applied[-1].items():
                assert rate == float(multipliers.get(name, 1.0) * scheduled)  # to the last bit
            (group,) = opt.param_groups
            assert torch.equal(torch.as_tensor(group["lr"]), torch.as_tensor(scheduled))
            opt.zero_grad()
            twin_opt.step()
            for s in (scheduler, twin):
                s.step(*([1.0] if schedule == "ReduceLROnPlateau" else []))
            if schedule != "ReduceLROnPlateau":
                assert {float(lr) for lr in scheduler.get_last_lr()} == {float(lr) for lr in twin.get_last_lr()}
        assert len(set(applied[-1].values())) > 2

    def test_sgd_moves_each_layer_by_its_multiplier(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, recipe)
        before = copy.deepcopy(net.state_dict())
        ((x, y),) = batches(1)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        for unit in balancer.units:
            weight = net.get_submodule(unit.name).weight
            rate = (before[f"{unit.name}.weight"] - weight.detach()).norm() / weight.grad.norm()
            assert float(rate) == pytest.approx(0.1 * unit.multiplier, rel=1e-4)

    def test_heavier_tails_get_smaller_multipliers(self, net, recipe):
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
        balancer.refresh()
        fitted = sorted((u.alpha, u.multiplier) for u in balancer.units if math.isfinite(u.alpha))
        assert fitted[0][1] == 0.5
        assert fitted[-1][1] == 1.5
        assert fitted == sorted(fitted, key=lambda pair: pair[1])

    def test_alphas_are_those_of_analyze(self, net, recipe):
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
        balancer.refresh()
        fits = {w.name: tb.Hill().fit(tb.weight_spectrum(w.load())) for w in tb.layers.find_weights(net)[0]}
        for unit in balancer.units:
            assert unit.alpha == pytest.approx(fits[f"{unit.name}.weight"].alpha, rel=1e-12, nan_ok=True)

    def test_a_block_has_the_mean_alpha_and_all_its_parameters_follow(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        balancer.refresh()
        for unit in balancer.units:
            fits = [
                tb.Hill().fit(tb.weight_spectrum(net.get_submodule(f"{unit.name}.{fc}").weight)).alpha
                for fc in ("fc1", "fc2")
            ]
            assert unit.alpha == pytest.approx(sum(fits) / 2)
        expected = {n for n, _ in net.named_parameters() if n.startswith("blocks.1.")}
        assert set(balancer.units[1].parameters) == expected

    def test_target_weight_decay_and_target_both_multiply_these_options(self, net, recipe):
        for target in ("weight_decay", "both"):
            model = make_net()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2)
            balancer = tb.Balancer(optimizer, model, dataclasses.replace(recipe, target=target))
            rates, decays = in_steps(optimizer, model), in_steps(optimizer, model, "weight_decay")
            train(model, optimizer, steps=1)
            for name, multiplier in by_parameter(balancer).items():
                assert rates[0][name] == (0.1 * multiplier if target == "both" else 0.1)
                assert decays[0][name] == 0.2 * multiplier
            assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.1, 0.2)}

    def test_gradient_clipping_accumulation_and_scaler_count_optimizer_steps(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for i, (x, y) in enumerate(batches(40)):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(net(x), y)
            scaler.scale(loss / 4).backward()
            if i % 4 == 3:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        assert [refresh.step for refresh in balancer.history] == [0, 5]

    def test_a_step_with_a_closure_refreshes_once(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe)
        ((x, y),) = batches(1)

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0
        assert len(balancer.history) == 1

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # of torch, while it compiles a step
    @pytest.mark.parametrize("compiled", ["model", "step"])
    def test_a_compiled_model_or_step_gives_the_same_result(self, compiled, recipe):
        results = []
        for compiling in (False, True):
            torch._dynamo.reset()
            net = make_net()
            optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(0.01), momentum=0.9)
            running = torch.compile(net, backend="eager") if compiling and compiled == "model" else net
            balancer = tb.Balancer(optimizer, running, recipe)
            if compiling and compiled == "step":
                optimizer.step = torch.compile(optimizer.step, backend="eager")
            train(running, optimizer, steps=12)
            results.append((net.state_dict(), [unit.name for unit in balancer.units], len(balancer.history)))
        # A compiled step rounds differently by itself.
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0 if compiled == "model" else 1e-6)
        assert results[0][1:] == results[1][1:]
        assert results[0][2] == 3


class TestWhen:
    def steps(self, net, recipe, steps=12, **options) -> list[int]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, recipe, **options)
        train(net, optimizer, steps=steps)
        return [refresh.step for refresh in balancer.history]

    def test_every_n_steps_measures_at_multiples_of_n(self, net, recipe):
        assert self.steps(net, recipe) == [0, 5, 10]

    def test_every_epoch_measures_once_per_epoch(self, net, recipe):
        recipe = dataclasses.replace(recipe, every=tb.Every(epochs=1))
        assert self.steps(net, recipe, steps_per_epoch=4) == [0, 4, 8]

    def test_a_fraction_of_an_epoch_is_at_least_one_step(self, net, recipe):
        recipe = dataclasses.replace(recipe, every=tb.Every(steps=100, epochs=0.1))
        assert self.steps(net, recipe, steps_per_epoch=3, steps=4) == [0, 1, 2, 3]

    def test_a_subclass_of_every_may_measure_at_other_steps(self, net, recipe):
        assert self.steps(net, dataclasses.replace(recipe, every=EveryAsReleased(steps=5))) == [0, 4, 9]

    def test_before_the_start_step_multipliers_are_one(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, start=3))
        multipliers = []
        optimizer.register_step_post_hook(lambda *_: multipliers.append({u.multiplier for u in balancer.units}))
        train(net, optimizer, steps=9)
        assert [refresh.step for refresh in balancer.history] == [3, 8]
        assert multipliers[:3] == [{1.0}] * 3
        assert len(multipliers[3]) > 2

    def test_a_ramp_is_linear_from_the_old_to_the_new_multiplier(self, net, recipe):
        recipe = dataclasses.replace(recipe, ramp=4, every=tb.Every(steps=100))
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=6)
        for unit in balancer.units:
            expected = [1 + (unit.multiplier - 1) * share for share in (0.25, 0.5, 0.75, 1, 1, 1)]
            assert [rate[f"{unit.name}.weight"] for rate in rates] == pytest.approx(expected)

    def test_a_subclass_of_recipe_may_take_effect_one_step_late(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, OneStepLate(name="late", assignment=recipe.assignment))
        rates = in_steps(optimizer, net)
        train(net, optimizer, steps=2)
        assert set(rates[0].values()) == {1.0}
        assert len(set(rates[1].values())) > 2

    def test_a_recipe_in_epochs_needs_steps_per_epoch(self, net, recipe):
        with pytest.raises(BalanceError, match="steps_per_epoch"):
            self.steps(net, dataclasses.replace(recipe, every=tb.Every(epochs=1)))

    @pytest.mark.parametrize("bad", [{}, {"steps": 0}, {"epochs": -1.0}])
    def test_intervals_that_are_not_positive_are_refused(self, bad):
        with pytest.raises(ValueError, match=r"positive|at least 1"):
            tb.Every(**bad)


class TestSafe:
    def test_a_nan_weight_keeps_the_last_good_multipliers_and_warns_once(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=5)
        good = balancer.units
        with torch.no_grad():
            net.blocks[1]["fc1"].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning, match=r"blocks\.1\.fc1\.weight.*NaN") as caught:
            train(net, optimizer, steps=16, start=5)
        assert len(caught) == 1
        assert balancer.units == good
        assert [refresh.step for refresh in balancer.history] == [0, 5, 10, 15]

    def test_a_nan_weight_is_measured_whatever_the_tolerance(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, tolerance=0.3))
        train(net, optimizer, steps=5)
        good = balancer.units
        with torch.no_grad():
            net.blocks[1]["fc1"].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning):
            train(net, optimizer, steps=6, start=5)
        assert balancer.units == good

    def test_a_nan_weight_at_the_first_refresh_gives_multiplier_one(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, recipe)
        with torch.no_grad():
            net.blocks[1]["fc1"].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning):
            train(net, optimizer, steps=1)
        assert {unit.multiplier for unit in balancer.units} == {1.0}

    def test_balancing_continues_once_all_weights_are_finite_again(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        weight = net.blocks[1]["fc1"].weight
        value = weight[0, 0].item()
        with torch.no_grad():
            weight[0, 0] = math.inf
        with pytest.warns(NumericsWarning):
            balancer.refresh()
        with torch.no_grad():
            weight[0, 0] = value
        balancer.refresh()
        assert len({unit.multiplier for unit in balancer.units}) > 2

    def test_learning_rates_do_not_compound_after_a_step_that_raises(self, net, recipe):
        class Failing(torch.optim.SGD):
            fail = False

            @torch.no_grad()
            def step(self, closure=None):
                if self.fail:
                    raise MemoryError
                return super().step(closure)

        optimizer = Failing(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        balancer.refresh()
        rates = in_steps(optimizer, net)
        optimizer.fail = True
        for _ in range(3):
            with pytest.raises(MemoryError):
                optimizer.step()
        optimizer.fail = False
        optimizer.step()
        assert rates[0] == rates[3]
        assert {group["lr"] for group in optimizer.param_groups} == {1.0}

    def test_an_error_of_the_estimator_reaches_the_user(self, net, recipe):
        class Broken(tb.Hill):
            def fit_tails(self, eigenvalues):
                raise RuntimeError("no luck")

        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, estimator=Broken()))
        with pytest.raises(RuntimeError, match="no luck"):
            optimizer.step()

    def test_a_layer_that_cannot_be_fitted_keeps_the_base_rate(self, net, recipe):
        with torch.no_grad():
            net.blocks[0]["fc1"].weight.zero_()
            net.blocks[0]["fc2"].weight.copy_(torch.eye(24))
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net, recipe)
        balancer.refresh()
        units = {unit.name: unit for unit in balancer.units}
        for name in ("blocks.0.fc1", "blocks.0.fc2"):
            assert math.isnan(units[name].alpha)
            assert units[name].multiplier == 1.0
        assert len({unit.multiplier for unit in balancer.units}) > 2

    def test_a_refresh_does_not_change_the_random_state(self, net, recipe):
        balancer = tb.Balancer(
            torch.optim.SGD(net.parameters(), lr=1.0), net, dataclasses.replace(recipe, windows=tb.FARMS())
        )
        before = torch.get_rng_state()
        balancer.refresh()
        assert torch.equal(torch.get_rng_state(), before)


class TestPeople:
    def test_history_and_imbalance_are_those_of_the_refreshes(self, net, recipe):
        calls = []
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, recipe, on_refresh=[calls.append])
        assert math.isnan(balancer.imbalance)
        train(net, optimizer, steps=6)
        assert calls == balancer.history
        alphas = torch.tensor([u.alpha for u in balancer.units if math.isfinite(u.alpha)], dtype=torch.float64)
        assert balancer.imbalance == pytest.approx(float(alphas.std(correction=0)))
        assert balancer.history[-1].imbalance == balancer.imbalance
        assert balancer.history[0].seconds > 0

    def test_repr_shows_recipe_units_and_interval(self, net, recipe):
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net, recipe)
        assert repr(balancer) == "Balancer(test, 8 layers, every 5 steps)"

    def test_training_prints_nothing(self, net, recipe, capfd):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        tb.Balancer(optimizer, net, recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", BalanceWarning)  # the alphas of so small a network are noise
            train(net, optimizer, steps=6)
        assert capfd.readouterr() == ("", "")
