"""The balancer: an add-on that is exact where it acts and leaves no trace where it does not."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import warnings

import lion_pytorch
import pytest
import torch
import transformers
from torch import nn
from torch.optim import lr_scheduler

import tempbalance as tb
from tempbalance.errors import BalanceError, NumericsWarning
from tempbalance.released.recipes_as_released import EveryAsReleased, OneStepLate

from .conftest import batches, make_net, train

NEUTRAL = tb.Recipe(name="neutral", assignment=tb.assign.Linear(1.0, 1.0), every=tb.Every(steps=20))

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), foreach=False, capturable=False),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Adafactor of transformers": lambda p: transformers.optimization.Adafactor(
        p, lr=1e-3, relative_step=False, scale_parameter=False
    ),
    "Lion": lambda p: lion_pytorch.Lion(p, lr=1e-4, weight_decay=1e-2),
}
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 200),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=3e-3, total_steps=201, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=20), lr_scheduler.CosineAnnealingLR(o, 180)], milestones=[20]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, threshold=0.1),
}


def finished(build, scheduling, recipe: tb.Recipe | None, steps: int = 200) -> dict[str, torch.Tensor]:
    net = make_net()
    optimizer = build(net.parameters())
    if recipe is not None:
        tb.Balancer(optimizer, net, recipe)
    train(net, optimizer, scheduling(optimizer), steps=steps)
    return net.state_dict()


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


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
def test_nor_do_those_of_the_neighbours(recipe):
    build, scheduling = OPTIMIZERS["AdamW foreach"], SCHEDULERS["cosine"]
    assert_same_bits(finished(build, scheduling, recipe, steps=50), finished(build, scheduling, None, steps=50))


def test_but_others_do(recipe):
    build, scheduling = OPTIMIZERS["SGD"], SCHEDULERS["cosine"]
    a, b = finished(build, scheduling, recipe), finished(build, scheduling, None)
    assert not torch.equal(a["blocks.0.fc1.weight"], b["blocks.0.fc1.weight"])


class TestExact:
    @pytest.mark.parametrize("schedule", SCHEDULERS)
    @pytest.mark.parametrize("optimizer", ["SGD", "AdamW tensor lr", "Lion"])
    def test_the_rate_that_applies_is_multiplier_times_scheduled_rate(self, net, recipe, optimizer, schedule):
        opt = OPTIMIZERS[optimizer](net.parameters())
        tb.Balancer(opt, net, recipe)
        scheduler = SCHEDULERS[schedule](opt)
        twin_opt = OPTIMIZERS[optimizer](make_net().parameters())
        twin = SCHEDULERS[schedule](twin_opt)
        applied: list[list[float]] = []
        opt.register_step_pre_hook(lambda o, *_: applied.append([float(g["lr"]) for g in o.param_groups]))
        losses = [1.0] * 40
        for step, (x, y) in enumerate(batches(40)):
            scheduled = twin_opt.param_groups[0]["lr"]
            nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
            for group, rate in zip(opt.param_groups, applied[-1], strict=True):
                assert rate == float(group["tempbalance"]["multiplier"] * scheduled)  # to the last bit
                assert torch.equal(torch.as_tensor(group["lr"]), torch.as_tensor(scheduled))
            opt.zero_grad()
            twin_opt.step()
            for s in (scheduler, twin):
                s.step(*([losses[step]] if schedule == "ReduceLROnPlateau" else []))
            if schedule != "ReduceLROnPlateau":
                assert {float(lr) for lr in scheduler.get_last_lr()} == {float(lr) for lr in twin.get_last_lr()}
        assert len(set(applied[-1])) > 2

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

    def test_heavier_tails_get_less(self, net, recipe):
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
        balancer.refresh()
        judged = sorted((u.alpha, u.multiplier) for u in balancer.units if math.isfinite(u.alpha))
        assert judged[0][1] == 0.5
        assert judged[-1][1] == 1.5
        assert judged == sorted(judged, key=lambda pair: pair[1])

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
        names = {g["name"]: set(g["tempbalance"]["names"]) for g in optimizer.param_groups}
        expected = {n for n, _ in net.named_parameters() if n.startswith("blocks.1.")}
        assert names["blocks.1"] == expected

    def test_weight_decay_and_both(self, net, recipe):
        seen = {}
        for target in ("weight_decay", "both"):
            model = make_net()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2)
            balancer = tb.Balancer(optimizer, model, dataclasses.replace(recipe, target=target))
            optimizer.register_step_pre_hook(
                lambda o, *_, target=target: seen.update(
                    {target: {g["name"]: (g["lr"], g["weight_decay"]) for g in o.param_groups}}
                )
            )
            train(model, optimizer, steps=1)
            for unit in balancer.units:
                lr = 0.1 * unit.multiplier if target == "both" else 0.1
                assert seen[target][unit.name] == (lr, 0.2 * unit.multiplier)
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

    def test_a_step_with_closure(self, net, recipe):
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
    def test_compiled(self, compiled, recipe):
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

    def test_every_few_steps(self, net, recipe):
        assert self.steps(net, recipe) == [0, 5, 10]

    def test_at_the_ends_of_epochs(self, net, recipe):
        recipe = dataclasses.replace(recipe, every=tb.Every(epochs=1))
        assert self.steps(net, recipe, steps_per_epoch=4) == [0, 4, 8]

    def test_a_share_of_an_epoch_but_at_least_a_step(self, net, recipe):
        recipe = dataclasses.replace(recipe, every=tb.Every(steps=100, epochs=0.1))
        assert self.steps(net, recipe, steps_per_epoch=3, steps=4) == [0, 1, 2, 3]

    def test_a_subclass_of_every_may_measure_at_other_steps(self, net, recipe):
        assert self.steps(net, dataclasses.replace(recipe, every=EveryAsReleased(steps=5))) == [0, 4, 9]

    def test_after_warm_up_and_neutral_before(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, start=3))
        multipliers = []
        optimizer.register_step_post_hook(lambda *_: multipliers.append({u.multiplier for u in balancer.units}))
        train(net, optimizer, steps=9)
        assert [refresh.step for refresh in balancer.history] == [3, 8]
        assert multipliers[:3] == [{1.0}] * 3
        assert len(multipliers[3]) > 2

    def test_a_ramp_leads_from_the_old_to_the_new(self, net, recipe):
        recipe = dataclasses.replace(recipe, ramp=4, every=tb.Every(steps=100))
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        rates = []
        optimizer.register_step_pre_hook(lambda o, *_: rates.append({g["name"]: g["lr"] for g in o.param_groups}))
        train(net, optimizer, steps=6)
        for unit in balancer.units:
            expected = [1 + (unit.multiplier - 1) * share for share in (0.25, 0.5, 0.75, 1, 1, 1)]
            assert [rate[unit.name] for rate in rates] == pytest.approx(expected)

    def test_a_subclass_of_recipe_may_take_effect_one_step_late(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, OneStepLate(name="late", assignment=recipe.assignment))
        rates = []
        optimizer.register_step_pre_hook(lambda o, *_: rates.append({g["lr"] for g in o.param_groups}))
        train(net, optimizer, steps=2)
        assert rates[0] == {1.0}
        assert len(rates[1]) > 2

    def test_epochs_of_unknown_length(self, net, recipe):
        with pytest.raises(BalanceError, match="steps_per_epoch"):
            self.steps(net, dataclasses.replace(recipe, every=tb.Every(epochs=1)))

    @pytest.mark.parametrize("bad", [{}, {"steps": 0}, {"epochs": -1.0}])
    def test_impossible_intervals(self, bad):
        with pytest.raises(ValueError, match="positive"):
            tb.Every(**bad)


class TestTolerance:
    def lazy(self, recipe: tb.Recipe, tolerance: float = 0.3) -> tb.Recipe:
        return dataclasses.replace(recipe, every=tb.Every(steps=1), tolerance=tolerance)

    def test_only_what_moved_is_measured_again(self, net, recipe):
        for block in list(net.blocks)[1:]:
            block.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-6)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        train(net, optimizer, steps=4)
        assert [refresh.measured for refresh in balancer.history] == [4, 0, 0, 0]

    def test_alphas_stay_within_the_tolerance_and_are_measured_when_they_may_not(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        worst = 0.0

        def compare(*_):
            nonlocal worst
            for unit in balancer.units:
                true = tb.Hill().fit(tb.weight_spectrum(net.get_submodule(unit.name).weight)).alpha
                if math.isfinite(unit.alpha):
                    worst = max(worst, abs(true - unit.alpha))

        optimizer.register_step_pre_hook(compare)
        train(net, optimizer, steps=60)
        measured = [refresh.measured for refresh in balancer.history]
        assert 0 < worst <= 0.3
        assert measured[0] > sum(measured[1:]) / 59 > 0

    def test_parts_of_a_parameter_are_measured_together(self, recipe):
        # Else the copy would move with the first of them, and the way of the others would begin anew.
        torch.manual_seed(0)
        net = nn.MultiheadAttention(32, 2)
        with torch.no_grad():
            net.in_proj_weight[64:].mul_(torch.linspace(1, 30, 32)[:, None])  # the values: a tail that little moves
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe))
        x = torch.randn(5, 2, 32)
        net(x, x, x)[0].sum().backward()
        optimizer.step()
        radii = {name: fit.radius for g in optimizer.param_groups for name, fit in g["tempbalance"]["weights"].items()}
        first, last = sorted(radius for name, radius in radii.items() if name.startswith("in_proj_weight"))[::2]
        assert 4 * first < last
        way = torch.randn(96, 32)
        for _ in range(8):
            with torch.no_grad():
                net.in_proj_weight.add_(way / way.norm() * first * 1.5)
            optimizer.step()
        assert [refresh.measured for refresh in balancer.history[1:]] == [3] * 8

    def test_exact_measures_all_and_keeps_no_copies(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, self.lazy(recipe), exact=True)
        train(net, optimizer, steps=3)
        assert {refresh.measured for refresh in balancer.history} == {balancer.history[0].measured}
        assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())

    def test_without_a_tolerance_all_are_measured(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=6)
        assert balancer.history[0].measured == balancer.history[1].measured

    def test_an_estimator_without_a_bound_is_always_measured(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(self.lazy(recipe), estimator=tb.KS()))
        train(net, optimizer, steps=3)
        large_enough = sum(math.isfinite(unit.alpha) for unit in balancer.units)
        assert [refresh.measured for refresh in balancer.history[1:]] == [large_enough] * 2

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_copies_beside_the_state_of_any_optimizer(self, net, recipe, optimizer):
        opt = OPTIMIZERS[optimizer](net.parameters())
        balancer = tb.Balancer(opt, net, self.lazy(recipe))
        train(net, opt, steps=4)
        assert len(balancer.history) == 4
        judged = {f"{unit.name}.weight" for unit in balancer.units if math.isfinite(unit.alpha)}
        assert all("tempbalance_reference" in opt.state[net.get_parameter(name)] for name in judged)


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

    def test_a_nan_weight_is_seen_by_its_distance_too(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, tolerance=0.3))
        train(net, optimizer, steps=5)
        good = balancer.units
        with torch.no_grad():
            net.blocks[1]["fc1"].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning):
            train(net, optimizer, steps=6, start=5)
        assert balancer.units == good

    def test_nan_from_the_start_means_multiplier_one(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        balancer = tb.Balancer(optimizer, net, recipe)
        with torch.no_grad():
            net.blocks[1]["fc1"].weight[0, 0] = math.nan
        with pytest.warns(NumericsWarning):
            train(net, optimizer, steps=1)
        assert {unit.multiplier for unit in balancer.units} == {1.0}

    def test_it_goes_on_once_the_weights_are_finite_again(self, net, recipe):
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

    def test_a_step_that_raises_does_not_compound(self, net, recipe):
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
        rates = []
        optimizer.register_step_pre_hook(lambda o, *_: rates.append({g["name"]: g["lr"] for g in o.param_groups}))
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

    def test_random_state_is_not_touched(self, net, recipe):
        balancer = tb.Balancer(
            torch.optim.SGD(net.parameters(), lr=1.0), net, dataclasses.replace(recipe, windows=tb.FARMS())
        )
        before = torch.get_rng_state()
        balancer.refresh()
        assert torch.equal(torch.get_rng_state(), before)


class TestBadInput:
    def test_an_optimizer_of_another_model(self, net, recipe):
        optimizer = torch.optim.SGD(make_net(1).parameters(), lr=1.0)
        with pytest.raises(BalanceError, match="no parameter of this model"):
            tb.Balancer(optimizer, net, recipe)

    def test_parameters_beside_the_model_keep_their_rate(self, net, recipe):
        extra = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([*net.parameters(), extra], lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        balancer.refresh()
        (group,) = [g for g in optimizer.param_groups if any(p is extra for p in g["params"])]
        assert group["tempbalance"]["multiplier"] == 1.0

    @pytest.mark.parametrize("schedule", SCHEDULERS)
    def test_a_scheduler_built_before(self, net, recipe, schedule):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        scheduler = SCHEDULERS[schedule](optimizer)
        with pytest.raises(BalanceError, match=r"built on this optimizer before.*schedulers="):
            tb.Balancer(optimizer, net, recipe)
        del scheduler

    @pytest.mark.parametrize("schedule", SCHEDULERS)
    def test_a_scheduler_built_before_and_named(self, recipe, schedule):
        rates = []
        for early in (True, False):
            net = make_net()
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            scheduler = SCHEDULERS[schedule](optimizer) if early else None
            tb.Balancer(optimizer, net, recipe, schedulers=[scheduler] if early else [])
            scheduler = scheduler or SCHEDULERS[schedule](optimizer)
            seen: list[list[float]] = []
            train(
                net, optimizer, scheduler, steps=30,
                at_step=lambda _, o=optimizer, seen=seen: seen.append([g["lr"] for g in o.param_groups]),
            )  # fmt: skip
            rates.append((seen, net.state_dict()))
        assert rates[0][0] == rates[1][0]
        assert_same_bits(rates[0][1], rates[1][1])

    def test_two_balancers_on_one_optimizer(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        first = tb.Balancer(optimizer, net, recipe)
        with pytest.raises(BalanceError, match=r"already.*remove\(\)"):
            tb.Balancer(optimizer, net, recipe)
        first.remove()
        tb.Balancer(optimizer, net, recipe)

    def test_removed_it_leaves_no_trace(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
        balancer = tb.Balancer(optimizer, net, dataclasses.replace(recipe, tolerance=0.1))
        train(net, optimizer, steps=2)
        balancer.remove()
        train(net, optimizer, steps=2)
        assert len(balancer.history) == 1
        assert all("tempbalance" not in group for group in optimizer.param_groups)
        assert all(set(state) == {"momentum_buffer"} for state in optimizer.state.values())

    def test_parameters_shared_between_units(self, net, recipe):
        net.blocks[2]["fc1"] = net.blocks[0]["fc1"]
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=1)
        assert "blocks.0.fc1" in {unit.name for unit in balancer.units}
        assert "blocks.2.fc1" not in {unit.name for unit in balancer.units}
        assert "tied to blocks.0.fc1.weight" in dict(balancer.skipped)["blocks.2.fc1.weight"]

    def test_no_weight_matrix(self, recipe):
        model = nn.LayerNorm(8)
        with pytest.raises(BalanceError, match="no weight of the model can be balanced"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, recipe)

    def test_no_block(self, recipe):
        model = nn.Linear(20, 20)
        with pytest.raises(BalanceError, match="unit='layer'"):
            tb.Balancer(torch.optim.SGD(model.parameters(), lr=1.0), model, dataclasses.replace(recipe, unit="block"))

    def test_frozen_everything(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        net.requires_grad_(False)
        with pytest.raises(BalanceError, match="frozen"):
            tb.Balancer(optimizer, net, recipe)

    def test_frozen_layers_have_no_say(self, net, recipe):
        net.blocks[2].requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        assert not any(unit.name.startswith("blocks.2") for unit in balancer.units)
        assert "frozen" in dict(balancer.skipped)["blocks.2.fc1.weight"]

    def test_layers_frozen_later_have_no_say_either(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        net.blocks[2].requires_grad_(False)
        balancer.refresh()
        late = [unit for unit in balancer.units if unit.name.startswith("blocks.2")]
        assert late
        assert all(math.isnan(unit.alpha) and unit.multiplier == 1.0 for unit in late)

    def test_a_group_added_later_keeps_its_rate_and_is_named_once(self, net, recipe, caplog):
        optimizer = torch.optim.SGD(net.blocks.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, recipe)
        optimizer.add_param_group({"params": list(net.head.parameters()), "lr": 0.25})
        rates = []
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[-1]["lr"]))
        with caplog.at_level(logging.WARNING, "tempbalance"):
            optimizer.step()
            optimizer.step()
        assert rates == [0.25, 0.25]
        assert len([r for r in caplog.records if "added after the balancer" in r.message]) == 1

    def test_no_hooks(self, net, recipe):
        class Homemade:
            def __init__(self):
                self.param_groups = [{"params": list(net.parameters()), "lr": 1.0}]

        with pytest.raises(BalanceError, match="Homemade has no step hooks"):
            tb.Balancer(Homemade(), net, recipe)

    def test_an_optimizer_with_a_single_group(self, net, recipe):
        with pytest.raises(BalanceError, match="one group"):
            tb.Balancer(torch.optim.LBFGS(net.parameters()), net, recipe)

    def test_an_optimizer_divided_among_processes(self, net, recipe, divided):
        with pytest.raises(BalanceError, match="param_groups"):
            tb.Balancer(divided(net.parameters(), torch.optim.SGD, lr=0.1), net, recipe)
        optimizer = divided(tb.balance.param_groups(net, recipe), torch.optim.SGD, lr=0.1)  # as the message says
        balancer = tb.Balancer(optimizer, net, recipe)
        before = copy.deepcopy(net.state_dict())
        train(net, optimizer, steps=1)
        twin = make_net()
        train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), steps=1)
        for unit in balancer.units:
            name = f"{unit.name}.weight"
            moved = (net.state_dict()[name] - before[name]).norm() / (twin.state_dict()[name] - before[name]).norm()
            assert float(moved) == pytest.approx(unit.multiplier, rel=1e-3)

    def test_no_rate_to_multiply(self, net, recipe):
        optimizer = transformers.optimization.Adafactor(net.parameters(), lr=None)
        with pytest.raises(BalanceError, match="relative_step=False"):
            tb.Balancer(optimizer, net, recipe)

    def test_no_weight_decay_to_multiply(self, net, recipe):
        optimizer = torch.optim.Rprop(net.parameters())
        with pytest.raises(BalanceError, match="has no weight_decay"):
            tb.Balancer(optimizer, net, dataclasses.replace(recipe, target="weight_decay"))

    def test_something_that_is_no_model(self, net, recipe):
        with pytest.raises(BalanceError, match=r"expected the model.*got a OrderedDict"):
            tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net.state_dict(), recipe)

    def test_a_state_saved_without_a_balancer(self, net, recipe):
        plain = torch.optim.AdamW(net.parameters(), lr=1.0)
        train(net, plain, steps=1)
        state = plain.state_dict()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        with pytest.raises(BalanceError, match="load it before the Balancer is built"):
            optimizer.load_state_dict(state)
        balancer.remove()
        resumed = torch.optim.AdamW(net.parameters(), lr=1.0)
        resumed.load_state_dict(state)
        tb.Balancer(resumed, net, recipe)  # as the message says
        assert len(resumed.state) == len(list(net.parameters()))

    def test_a_state_saved_with_other_units(self, net, recipe):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        balancer = tb.Balancer(optimizer, net, recipe)
        state = optimizer.state_dict()
        balancer.remove()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        with pytest.raises(BalanceError, match="saved with other parameter groups"):
            optimizer.load_state_dict(state)

    @pytest.mark.parametrize(
        "bad", [{"target": "momentum"}, {"unit": "neuron"}, {"norms": "all"}, {"start": -1}, {"tolerance": -0.1}]
    )
    def test_impossible_recipes(self, recipe, bad):
        with pytest.raises(ValueError, match=r"must be one of|negative"):
            dataclasses.replace(recipe, **bad)

    @pytest.mark.parametrize("kinds", ["linear", ("linear", "spectral")])
    def test_unknown_kinds_of_weights(self, recipe, kinds):
        with pytest.raises(ValueError, match=r"kinds must be None or a tuple of linear, .*spectral_conv.*; got"):
            dataclasses.replace(recipe, kinds=kinds)


class TestGroups:
    def test_never_an_empty_group_and_names_on_all(self, net, recipe):
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
        )
        tb.Balancer(optimizer, net, recipe)
        names = [name for group in optimizer.param_groups for name in group["tempbalance"]["names"]]
        assert all(group["params"] for group in optimizer.param_groups)
        assert sorted(names) == sorted(name for name, _ in net.named_parameters())
        assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)
        for group in optimizer.param_groups:
            decays = {0.1 if net.get_parameter(name).ndim > 1 else 0.0 for name in group["tempbalance"]["names"]}
            assert decays == {group["weight_decay"]}

    def test_as_few_groups_as_units_need(self, net, recipe):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        tb.Balancer(optimizer, net, dataclasses.replace(recipe, unit="block"))
        assert [group["name"] for group in optimizer.param_groups] == ["rest", "blocks.0", "blocks.1", "blocks.2"]

    def test_names_of_torch_are_split_too(self, net, recipe):
        optimizer = torch.optim.SGD(net.named_parameters(), lr=1.0)
        tb.Balancer(optimizer, net, recipe)
        for group in optimizer.param_groups:
            assert group["param_names"] == group["tempbalance"]["names"]

    def test_state_is_kept(self, net, recipe):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        train(net, optimizer, steps=3)
        before = {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
        tb.Balancer(optimizer, net, recipe)
        assert all(torch.equal(optimizer.state[p]["exp_avg"], value) for p, value in before.items())

    def test_built_by_the_builder_the_groups_stay_as_they_are(self, net, recipe):
        groups = tb.balance.param_groups(net, recipe, lambda _, p: {"weight_decay": 0.1 if p.ndim > 1 else 0.0})
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)  # before the balancer: the layout stays
        names = [group["name"] for group in optimizer.param_groups]
        tb.Balancer(optimizer, net, recipe)
        assert [group["name"] for group in optimizer.param_groups] == names
        train(net, optimizer, scheduler, steps=3)

    def test_the_builder_leaves_out_what_is_frozen(self, net, recipe):
        net.stem.requires_grad_(False)
        parameters = {id(p) for group in tb.balance.param_groups(net, recipe) for p in group["params"]}
        assert parameters == {id(p) for p in net.parameters() if p.requires_grad}


class TestPeople:
    def test_history_and_imbalance(self, net, recipe):
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

    def test_repr(self, net, recipe):
        balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=1.0), net, recipe)
        assert repr(balancer) == "Balancer(test, 8 layers, every 5 steps)"

    def test_nothing_is_printed(self, net, recipe, capfd):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        tb.Balancer(optimizer, net, recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(net, optimizer, steps=6)
        assert capfd.readouterr() == ("", "")
