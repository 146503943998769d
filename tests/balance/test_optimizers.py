"""Optimizers of all kinds are balanced, also inside wrappers, or refused and left as they were."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import lion_pytorch
import pytest
import torch
import transformers
from torch import nn
from torch.optim import Optimizer

import tempbalance as tb
from tempbalance.errors import BalanceError

from .conftest import Net, assert_same_bits, batches, by_parameter, in_steps, make_net, options, train

RECIPE = tb.Recipe(name="test", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=100))
NEUTRAL = dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0), every=tb.Every(steps=2))
DECAY = dataclasses.replace(RECIPE, target="weight_decay")
STEPS = 5

NAMES = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD".split()
BUILT: dict[str, Callable[[Any], Optimizer]] = {
    **{name: functools.partial(getattr(torch.optim, name), lr=1e-3) for name in NAMES},
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True, amsgrad=True),
    "SGD foreach": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9, nesterov=True, foreach=True),
    "Lion": lambda params: lion_pytorch.Lion(params, lr=1e-4, weight_decay=0.1),
    "Adafactor of transformers": lambda params: transformers.optimization.Adafactor(
        params, lr=1e-3, relative_step=False
    ),
}


class SAM(Optimizer):
    """Takes its steps with ``base_optimizer``, between two evaluations of the loss, as the well-known SAM does."""

    def __init__(self, params: Any, base: type[Optimizer], rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=group["rho"])
                p.grad = None

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class Lookahead(Optimizer):
    """Has no state hooks, and step hooks that are never called, like the one of timm."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks = collections.OrderedDict()
        self._optimizer_step_post_hooks = collections.OrderedDict()
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = collections.defaultdict(dict)
        for group in self.param_groups:
            group["lookahead_step"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self._base_optimizer.step(closure)
        for group in self.param_groups:
            group["lookahead_step"] += 1
            for p in group["params"] if group["lookahead_step"] % 2 == 0 else ():
                state = self._base_optimizer.state[p]
                slow = state.setdefault("slow", p.clone())
                slow.add_(p - slow, alpha=0.5)
                p.copy_(slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self._base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._base_optimizer.load_state_dict(state_dict)
        self.param_groups = self._base_optimizer.param_groups


class NoOptimizer:
    """A wrapper that is no optimizer of torch, like ``schedulefree.ScheduleFreeWrapper``."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def step(self) -> None:
        self.base.step()


class CopiesTheList(Optimizer):
    """Keeps a list of its own with the groups of the optimizer inside."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.param_groups = list(inner.param_groups)
        self.inner = inner

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "SAM": lambda params: SAM(params, torch.optim.SGD, lr=0.01, momentum=0.9),
    "SAM, two-step": lambda params: SAM(params, torch.optim.SGD, lr=0.01, momentum=0.9),
    "Lookahead": lambda params: Lookahead(torch.optim.AdamW(params, lr=1e-3)),
    "a wrapper of Lookahead": lambda params: NoOptimizer(Lookahead(torch.optim.AdamW(params, lr=1e-3))),
    "no optimizer": lambda params: NoOptimizer(torch.optim.AdamW(params, lr=1e-3)),
    "a list of its own": lambda params: CopiesTheList(torch.optim.AdamW(params, lr=1e-3)),
}


def run(net: Net, optimizer: Any, kind: str = "", *, steps: int = STEPS, start: int = 0) -> None:
    """Train; SAM with a closure, or in two steps."""
    for x, y in batches(steps, start=start):

        def loss(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            value = nn.functional.cross_entropy(net(x), y)
            value.backward()
            return value

        loss()
        if kind == "SAM":
            optimizer.step(loss)
        elif kind == "SAM, two-step":
            optimizer.first_step()
            loss()
            optimizer.second_step()
        else:
            optimizer.step()
        optimizer.zero_grad()


def two_groups(net: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    return [{"params": matrices}, {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0}]


@pytest.mark.parametrize("name", BUILT)
class TestKinds:
    def test_neutral_multipliers_change_no_bit_and_no_option(self, name):
        runs = []
        for recipe in (None, NEUTRAL):
            net = make_net()
            optimizer = BUILT[name](two_groups(net))
            if recipe is not None:
                tb.Balancer(optimizer, net, recipe)
            train(net, optimizer, steps=STEPS)
            runs.append((net.state_dict(), options(optimizer)))
        assert_same_bits(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]

    @pytest.mark.parametrize("key", ["lr", "weight_decay"])
    def test_a_balanced_run_is_that_of_groups_with_these_values(self, net, name, key):
        optimizer = BUILT[name]([{**group, "weight_decay": 0.1} for group in two_groups(net)])
        if name == "Rprop" and key == "weight_decay":
            return
        fresh = options(optimizer)
        balancer = tb.Balancer(optimizer, net, RECIPE if key == "lr" else DECAY)
        inside: list[list[tuple[float, list[str]]]] = []
        names = {id(p): name for name, p in net.named_parameters()}
        optimizer.register_step_pre_hook(
            lambda o, *_: inside.append([(g[key], [names[id(p)] for p in g["params"]]) for g in o.param_groups])
        )
        train(net, optimizer, steps=STEPS)
        multipliers = by_parameter(balancer)
        assert all(value == fresh[0][key] * multipliers.get(each, 1.0) for value, of in inside[0] for each in of)
        other = make_net()
        parameters = dict(other.named_parameters())
        matrices = {id(p) for p in two_groups(other)[0]["params"]}
        groups = [
            {**fresh[id(parameters[of[0]]) not in matrices], key: value, "params": [parameters[each] for each in of]}
            for value, of in inside[0]
        ]
        train(other, BUILT[name](groups), steps=STEPS)
        assert_same_bits(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", WRAPPERS)
class TestWrappers:
    def test_the_optimizer_inside_has_the_multiplied_rates(self, net, kind):
        optimizer = WRAPPERS[kind](two_groups(net))
        given = options(optimizer)
        balancer = tb.Balancer(optimizer, net, RECIPE)
        rates = in_steps(balancer.optimizer, net)
        run(net, optimizer, kind)
        assert [refresh.step for refresh in balancer.history] == [0]
        multipliers = by_parameter(balancer)
        assert len(rates) == STEPS
        assert rates[-1] == {name: given[0]["lr"] * multipliers.get(name, 1.0) for name in rates[-1]}
        assert len(set(rates[-1].values())) > 2
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in given]

    def test_neutral_multipliers_change_no_bit(self, kind):
        runs = []
        for recipe in (None, NEUTRAL):
            net = make_net()
            optimizer = WRAPPERS[kind](two_groups(net))
            given = list(optimizer.param_groups)
            if recipe is not None:
                tb.Balancer(optimizer, net, recipe)
            run(net, optimizer, kind)
            assert all(a is b for a, b in zip(optimizer.param_groups, given, strict=True))
            runs.append((net.state_dict(), options(optimizer)))
        assert_same_bits(runs[0][0], runs[1][0])
        assert runs[0][1] == runs[1][1]

    def test_state_dicts_are_exchanged_and_resumed(self, kind):
        if kind == "a list of its own":  # its state dict has no state: only the one inside has
            return
        results = {}
        for first, second in ((None, None), (NEUTRAL, None), (None, NEUTRAL), (RECIPE, RECIPE)):
            net = make_net()
            optimizer = WRAPPERS[kind](two_groups(net))
            whole = first and tb.Balancer(optimizer, net, first)
            run(net, optimizer, kind, steps=3)
            saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            net = make_net()
            optimizer = WRAPPERS[kind](two_groups(net))
            resumed = second and tb.Balancer(optimizer, net, second)
            net.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            if first is second is RECIPE:
                assert resumed.units == whole.units
            run(net, optimizer, kind, steps=6, start=3)
            results[first, second] = net.state_dict()
        assert_same_bits(results[None, None], results[NEUTRAL, None])
        assert_same_bits(results[None, None], results[None, NEUTRAL])
        if not kind.startswith("SAM"):  # whose state dict has no momentum
            net = make_net()
            optimizer = WRAPPERS[kind](two_groups(net))
            tb.Balancer(optimizer, net, RECIPE)
            run(net, optimizer, kind, steps=6)
            assert_same_bits(net.state_dict(), results[RECIPE, RECIPE])

    def test_an_exception_in_a_step_leaves_the_groups(self, net, kind):
        optimizer = WRAPPERS[kind](two_groups(net))
        given, before = list(optimizer.param_groups), [group["lr"] for group in optimizer.param_groups]
        balancer = tb.Balancer(optimizer, net, RECIPE)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        handle = balancer.optimizer.register_step_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(net, optimizer, kind)
        handle.remove()
        assert all(a is b for a, b in zip(optimizer.param_groups, given, strict=True))
        assert [group["lr"] for group in optimizer.param_groups] == before


@pytest.mark.parametrize("kind", [*WRAPPERS, *BUILT])
def test_a_removed_balancer_leaves_the_optimizer_as_it_was(net, kind):
    optimizer = (WRAPPERS | BUILT)[kind](two_groups(net))
    before = frozen(optimizer)
    tb.Balancer(optimizer, net, RECIPE).remove()
    assert frozen(optimizer) == before


def test_a_constructor_that_raises_leaves_the_model_as_it_was(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = frozen(optimizer)
    with pytest.raises(TypeError, match="not iterable"):
        tb.Balancer(optimizer, net, tb.recipes.gradual_unfreezing(), steps_per_epoch=3, on_refresh=print)
    assert frozen(optimizer) == before
    assert not any(module._forward_pre_hooks for module in net.modules())


class NeverHooked(Optimizer):
    """Has step hooks that its steps never call."""

    def __init__(self, params: Any) -> None:
        self._optimizer_step_pre_hooks = collections.OrderedDict()
        self._optimizer_step_post_hooks = collections.OrderedDict()
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.state = collections.defaultdict(dict)
        self.defaults = {}

    def step(self) -> None:
        """Do nothing."""


class OneRate(torch.optim.SGD):
    """Refuses groups with different rates, like Prodigy."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1.0)
        for group in self.param_groups:
            group["d0"] = 1e-6


class DAdaptSGD(torch.optim.SGD):
    """An optimizer that is known by its name."""


class FlatGroups(torch.optim.SGD):
    """Keeps one tensor for all parameters of a group, like IVON."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["hess"] = torch.zeros(sum(p.numel() for p in group["params"]))


class Several:
    """Takes its steps with two optimizers, like a Muon with an Adam for the vectors."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.parts = [torch.optim.SGD([group], lr=0.1) for group in groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]


class OnePerParameter(Optimizer):
    """Keeps an optimizer per parameter in a dict, like the one of torchao that offloads states to the CPU."""

    def __init__(self, net: nn.Module) -> None:
        self.optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for each in self.optimizers.values() for group in each.param_groups]


class NewList(torch.optim.SGD):
    """Has its groups elsewhere."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return list(self.groups)

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups

    def add_param_group(self, group: dict[str, Any]) -> None:
        self.groups.append({**group, "lr": 0.1})


class InBackward(torch.optim.SGD):
    def fused_backward(self, loss: torch.Tensor, lr: float) -> None:
        """Do nothing."""


class KeepsSome(torch.optim.SGD):
    """Takes the steps of some parameters by another optimizer."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.1)
        self.adam = torch.optim.Adam(groups[1]["params"])


class DummyParameters:
    """Wraps an optimizer of other parameters, and has no groups."""

    def __init__(self, net: nn.Module) -> None:
        self.optimizer = torch.optim.SGD([p.detach().clone() for p in net.parameters()], lr=0.1)


REFUSED: dict[str, tuple[Callable[[Net], Any], str]] = {
    "no hooks": (lambda net: NeverHooked(net.parameters()), r"the steps of NeverHooked call no step hooks: call super"),
    "d0": (lambda net: OneRate(net.parameters()), r"OneRate finds one learning rate .* target='weight_decay'"),
    "DAdapt": (lambda net: DAdaptSGD(net.parameters(), lr=1.0), r"DAdaptSGD finds one learning rate"),
    "LBFGS": (lambda net: torch.optim.LBFGS(net.parameters()), r"LBFGS takes all parameters in one group"),
    "flat": (lambda net: FlatGroups(net.parameters()), r"FlatGroups keeps hess of all parameters of a group in one"),
    "several": (
        lambda net: Several(two_groups(net)),
        r"Several leaves some .* to SGD: build a Balancer for each",
    ),
    "some": (lambda net: KeepsSome(two_groups(net)), r"KeepsSome leaves some of its parameters to Adam: build a Bal"),
    "one each": (OnePerParameter, r"OnePerParameter leaves some of its parameters to SGD"),
    "new list": (lambda net: NewList(list(net.parameters()), lr=0.1), r"NewList makes a new list of its groups"),
    "LOMO": (lambda net: InBackward(net.parameters(), lr=0.1), r"InBackward updates parameters during backward\(\)"),
    "gradient release": (
        lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
        r"SGD updates parameters during backward\(\), not in step",
    ),
    "dummies": (DummyParameters, r"no parameter of this model"),
    "relative step": (
        lambda net: transformers.optimization.Adafactor(net.parameters(), lr=None, relative_step=True),
        r"relative_step=True computes its own learning rate and ignores lr: set relative_step=False",
    ),
    "relative step, warm-up": (
        lambda net: transformers.optimization.Adafactor(
            net.parameters(), lr=None, relative_step=True, warmup_init=True
        ),
        r"set relative_step=False, warmup_init=False and lr=",
    ),
    "Lookahead of one rate": (lambda net: Lookahead(OneRate(net.parameters())), r"OneRate finds one learning rate"),
}


def frozen(optimizer: Any) -> Any:
    """Return what a refusal must not change."""
    content = {key: (id(value), repr(value) if "hooks" in key else "") for key, value in vars(optimizer).items()}
    groups = [(id(g), {k: id(v) for k, v in g.items()}) for g in getattr(optimizer, "param_groups", ())]
    inside = [frozen(value) for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    return content, groups, inside


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_optimizer_is_as_it_was(net, kind):
    build, message = REFUSED[kind]
    optimizer = build(net)
    if kind == "gradient release":
        optimizer.defaults["gradient_release"] = True  # of optimi
    before = frozen(optimizer)
    with pytest.raises(BalanceError, match=message):
        tb.Balancer(optimizer, net, RECIPE)
    assert frozen(optimizer) == before


def test_adafactor_is_refused_with_its_schedule_too(net):
    optimizer = transformers.optimization.Adafactor(net.parameters(), lr=None, relative_step=True)
    transformers.optimization.AdafactorSchedule(optimizer)  # puts a number into lr
    with pytest.raises(BalanceError, match="ignores lr"):
        tb.Balancer(optimizer, net, RECIPE)


def test_each_optimizer_of_several_can_be_balanced(net):
    several = Several(two_groups(net))
    balancer = tb.Balancer(several.parts[0], net, RECIPE)
    train(net, several.parts[0], steps=2)
    assert len(balancer.history) == 1


@pytest.mark.parametrize(
    "build",
    [
        OneRate,
        lambda params: transformers.optimization.Adafactor(params, lr=None, relative_step=True, weight_decay=0.1),
    ],
    ids=["one rate", "Adafactor with its own rate"],
)
def test_the_weight_decay_of_an_optimizer_with_one_rate_can_be_balanced(net, build):
    optimizer = build(net.parameters())
    optimizer.param_groups[0]["weight_decay"] = 0.1
    balancer = tb.Balancer(optimizer, net, DECAY)
    decays = in_steps(optimizer, net, "weight_decay")
    train(net, optimizer, steps=2)
    multipliers = by_parameter(balancer)
    assert decays[-1] == {name: 0.1 * multipliers.get(name, 1.0) for name in decays[-1]}
