"""An error on one process is raised on all, with one message, and no process waits for another."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tempbalance as tb
from tempbalance.errors import BalanceError, BalanceWarning, NumericsWarning, RefreshError

from .loops import (
    ENGINES,
    LAZY,
    RECIPE,
    Net,
    alone,
    equal,
    make,
    make_net,
    state_of,
    train,
    units_of,
    weights_of,
    wrap,
)
from .worlds import run, run_killed


def error_of(kind: type[BaseException], function, *args: Any, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        function(*args, **options)
    assert type(raised.value) is kind
    return str(raised.value)


@dataclasses.dataclass(frozen=True)
class Fragile(tb.Hill):
    """Does something on rank 1 while there is something to do."""

    does: list[Callable[[], object]] = dataclasses.field(default_factory=list, compare=False)

    def fit_tails(self, eigenvalues):
        if self.does and dist.get_rank() == 1:
            self.does[0]()
        return super().fit_tails(eigenvalues)


def no_luck() -> None:
    raise RuntimeError("no luck")


def interrupt() -> None:
    raise KeyboardInterrupt


def fails_on_rank_1(engine: str, failure: Callable[[], object]) -> dict[str, Any]:
    model, optimizer = make(engine)
    estimator = Fragile()
    balancer = tb.Balancer(optimizer, model, dataclasses.replace(RECIPE, estimator=estimator))
    train(model, optimizer, 3)
    before = state_of(balancer)
    estimator.does.append(failure)
    interrupted = failure is interrupt and dist.get_rank() == 1
    message = error_of(KeyboardInterrupt if interrupted else RefreshError, train, model, optimizer, 4, start=3)
    assert equal(state_of(balancer), before)
    estimator.does.clear()
    optimizer.zero_grad()
    train(model, optimizer, 7, start=3)
    return {"message": message, "refreshes": [refresh.step for refresh in balancer.history], "at": state_of(balancer)}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_refresh_that_fails_on_one_process_fails_on_all(engine, size):
    ranks = run(size, fails_on_rank_1, engine, no_luck)
    for rank in ranks:
        message = "the refresh of the multipliers at step 3 failed: RuntimeError: no luck (rank 1)"
        assert rank["message"] == message
        assert rank["refreshes"] == [0, 3, 6]
        assert equal(rank["at"], ranks[0]["at"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_that_is_interrupted_raises_that_and_the_others_say_so(engine):
    ranks = run(2, fails_on_rank_1, engine, interrupt)
    told = "the refresh of the multipliers at step 3 failed: KeyboardInterrupt (rank 1)"
    assert [rank["message"] for rank in ranks] == [told, ""]
    for rank in ranks:
        assert rank["refreshes"] == [0, 3, 6]
        assert equal(rank["at"], ranks[0]["at"])


class Watched(Net):
    """A network that starts something when a refresh searches it for weights."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[Callable[[], object]] = []

    def named_modules(self, *args, **options):
        if self.starts:
            self.starts.pop()()
        return super().named_modules(*args, **options)


def is_interrupted(engine: str) -> dict[str, Any]:
    """Refresh again and again; a signal interrupts rank 1 at any moment of it, or after it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background jobs
    torch.manual_seed(0)
    net = Watched()
    model = wrap(net, engine)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    balancer = tb.Balancer(optimizer, model, LAZY)
    train(model, optimizer, 1)
    told, seconds = 0, max(balancer.refresh().seconds for _ in range(3))
    for number, moment in enumerate(torch.linspace(0, 1.5, ROUNDS).tolist()):
        with torch.no_grad():  # all are measured again
            for parameter in model.parameters():
                parameter.mul_(0.5 if number % 2 else 2.0)
        timer = threading.Timer(moment * seconds, os.kill, (os.getpid(), signal.SIGINT))
        try:
            net.starts = [timer.start] if dist.get_rank() == 1 else []
            balancer.refresh()
            if dist.get_rank() == 1:
                time.sleep(10)
        except (RefreshError, KeyboardInterrupt) as error:
            assert isinstance(error, KeyboardInterrupt) == (dist.get_rank() == 1)
            told += isinstance(error, RefreshError)
        dist.barrier()
    balancer.refresh()
    train(model, optimizer, 3, start=1)
    return {"told": told, "state": state_of(balancer), "weights": weights_of(model)}


ROUNDS = 20


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_at_any_moment_of_a_refresh_leaves_no_process_waiting(engine):
    first, second = run(2, is_interrupted, engine)
    assert first["told"] > 0  # the rest came after the last exchange
    assert equal(first["state"], second["state"])
    assert equal(first["weights"], second["weights"])


def is_killed(engine: str) -> tuple[str, float]:
    model, optimizer = make(engine)
    estimator = Fragile()
    balancer = tb.Balancer(optimizer, model, dataclasses.replace(RECIPE, estimator=estimator))
    train(model, optimizer, 3)
    before = state_of(balancer)
    estimator.does.append(lambda: os.kill(os.getpid(), signal.SIGKILL))
    start = time.monotonic()
    message = error_of(RefreshError, train, model, optimizer, 4, start=3)
    assert equal(state_of(balancer), before)
    return message, time.monotonic() - start


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_that_is_killed_in_a_refresh_ends_it_for_the_others(engine, size):
    for message, seconds in run_killed(size, 1, is_killed, engine):
        assert message.startswith("the refresh of the multipliers at step 3 failed: another process has stopped (")
        assert seconds < 15  # and not the time-out


@dataclasses.dataclass(frozen=True)
class Moody(tb.assign.Linear):
    """An assignment that fails on rank 1: after the exchange of the alphas."""

    def assign(self, units):
        if dist.get_rank() == 1:
            raise ZeroDivisionError("bad mood")
        return super().assign(units)


def fails_between_exchanges(what: str) -> str:
    model, optimizer = make("ddp")
    if what == "assignment":
        tb.Balancer(optimizer, model, dataclasses.replace(RECIPE, assignment=Moody(0.5, 1.5)))
        return error_of(RefreshError, train, model, optimizer, 1)
    if what == "warning":
        tb.Balancer(optimizer, model, dataclasses.replace(RECIPE, assignment=tb.assign.Linear(1.0, 1.0)))
        with warnings.catch_warnings():
            warnings.simplefilter("error", BalanceWarning)  # given by rank 0 only
            return error_of(RefreshError, train, model, optimizer, 1)
    balancer = tb.Balancer(optimizer, model, RECIPE)
    train(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:-1]  # plan again
    if dist.get_rank() == 1:
        model.module.named_modules = no_luck
    return error_of(RefreshError, balancer.refresh)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("assignment", "at step 0 failed: ZeroDivisionError: bad mood (rank 1)"),
        ("warning", "at step 0 failed: BalanceWarning: test: all 7 multipliers are 1"),
        ("plan", "at step 1 failed: TypeError:"),
    ],
)
def test_a_failure_between_the_exchanges_of_a_refresh_fails_on_all(what, message):
    first, second = run(2, fails_between_exchanges, what)
    assert first == second
    assert message in first


class Unreadable(Net):
    """A network whose modules cannot be listed while ``fails`` is set."""

    fails = False

    def named_modules(self, *args, **options):
        if self.fails:
            raise MemoryError("no room")
        return super().named_modules(*args, **options)


def cannot_search_on_rank_1(engine: str) -> list[str]:
    net = Unreadable()
    model = wrap(net, engine)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    balancer = tb.Balancer(optimizer, model, RECIPE)
    net.fails = dist.get_rank() == 1
    lost = error_of(RefreshError, balancer.refresh)
    net.fails = False
    if dist.get_rank() == 1:
        next(iter(model.parameters())).requires_grad_(False)
    return [lost, error_of(RefreshError, balancer.refresh)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_search_for_weights_on_one_process_fails_on_all(engine):
    lost, frozen = zip(*run(2, cannot_search_on_rank_1, engine), strict=True)
    assert set(lost) == {"the refresh of the multipliers at step 0 failed: MemoryError: no room (rank 1)"}
    assert len(set(frozen)) == 1
    assert "do not train the same weights any more" in frozen[0]


def logger_fails(engine: str) -> str:
    def log(_: tb.balance.Refresh) -> None:
        raise ConnectionError("the network is down")

    model, optimizer = make(engine)
    tb.Balancer(optimizer, model, RECIPE, on_refresh=[log])
    return error_of(RefreshError, train, model, optimizer, 1)


def test_a_logger_that_fails_on_rank_0_fails_on_all():
    message = "the refresh of the multipliers at step 0 failed: ConnectionError: the network is down (rank 0)"
    assert run(2, logger_fails, "ddp") == [message] * 2


def meets_nan(engine: str, recipe: tb.Recipe) -> dict[str, Any]:
    model, optimizer = make(engine)
    balancer = tb.Balancer(optimizer, model, recipe)
    weight = dict(model.named_parameters())["module.neck.weight" if engine == "ddp" else "neck.weight"]
    sound = weight.detach().clone()
    good: list[Any] = []

    def spoil(step: int) -> None:
        if step == 6:  # a refresh follows
            good.extend(units_of(balancer))
            weight.detach().fill_(torch.nan)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 10, at_step=spoil)
    assert equal(units_of(balancer), good)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
        weight.copy_(sound)
    return {
        "warnings": [(entry.category, str(entry.message)) for entry in caught if entry.category is not BalanceWarning],
        "steps": state_of(balancer)["steps"],
        "history": len(balancer.history),
        "healed": balancer.refresh().imbalance,
    }


@pytest.mark.parametrize("recipe", [RECIPE, LAZY], ids=["exact", "tolerance"])
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_are_not_finite_leave_the_multipliers_as_they_are(engine, recipe):
    first, *others = run(2, meets_nan, engine, recipe)
    ((category, message),) = first["warnings"]
    assert category is NumericsWarning
    assert "neck.weight: 230 of 230 weights are NaN or Inf; the multipliers stay as they are" in message
    assert first["steps"] == 10
    assert first["healed"] == 0.0  # one unit has an alpha again
    assert all(equal(first, other) for other in others)


def other_models() -> list[str]:
    rank = dist.get_rank()
    messages = []
    for net in (
        nn.Linear(16, 16 + rank),
        nn.Sequential(nn.Linear(16, 16), *[nn.Linear(16, 16)] * rank),
        nn.LayerNorm(16) if rank else nn.Linear(16, 16),
    ):
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        groups = list(optimizer.param_groups)
        messages.append(error_of(BalanceError, tb.Balancer, optimizer, net, RECIPE))
        assert optimizer.param_groups == groups  # untouched
    net = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    epochs = dataclasses.replace(RECIPE, every=tb.Every(epochs=1.0))
    messages.append(error_of(BalanceError, tb.Balancer, optimizer, net, epochs, steps_per_epoch=10 + rank))
    return messages


def test_different_models_or_intervals_on_the_processes_are_refused():
    first, second = run(2, other_models)
    assert first == second
    shapes, layers, nothing, epochs = first
    assert "0 and 1 train different models or parameters (weight of shape (16, 16); weight of shape (17, 16))" in shapes
    assert "pass as process_group the processes that train this model" in shapes
    assert "nothing; 1.weight" in layers
    assert "setting up the balancer failed: BalanceError: no weight of the model can be balanced" in nothing
    assert "(rank 1)" in nothing
    assert "test every 10 steps" in epochs
    assert "test every 11 steps" in epochs
    assert "give all the same recipe and steps_per_epoch" in epochs


def two_models() -> dict[str, Any]:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    number = dist.get_rank() // 2
    net = make_net(seed=number)
    net.neck = nn.Linear(23, 10 + number)
    net.head = nn.Linear(10 + number, 3)
    model = DistributedDataParallel(net, process_group=groups[number])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen: list[tb.balance.Refresh] = []
    balancer = tb.Balancer(optimizer, model, RECIPE, process_group=groups[number], on_refresh=[seen.append])
    train(model, optimizer, 3)
    balancer.refresh()
    other = error_of(BalanceError, tb.Balancer, optimizer, model, RECIPE, process_group=groups[1 - number])
    return {
        "units": units_of(balancer),
        "state": state_of(balancer),
        "seen": len(seen),
        "other": other,
        "weights": weights_of(model),
    }


def test_two_models_are_balanced_by_two_process_groups():
    ranks = run(4, two_models)
    for i, rank in enumerate(ranks):
        assert equal(rank["state"], ranks[i // 2 * 2]["state"])
        assert rank["seen"] == (0 if i % 2 else 2)  # the first of each group
        assert f"process {i} is not in the process_group" in rank["other"]
    assert equal(ranks[0]["units"], alone(ranks[0]["weights"]))
    assert not equal(ranks[0]["state"], ranks[2]["state"])


def shards_elsewhere() -> str:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    net = Net()
    fully_shard(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return error_of(BalanceError, tb.Balancer, optimizer, net, RECIPE, process_group=groups[dist.get_rank() // 2])


def test_a_process_group_without_all_ranks_of_the_mesh_is_refused():
    assert all("sharded over processes outside of the process_group" in message for message in run(4, shards_elsewhere))


def late_group(engine: str) -> dict[str, Any]:
    model, optimizer = make(engine)
    late = [p for name, p in model.named_parameters() if "neck" in name]
    first = [p for p in model.parameters() if all(p is not q for q in late)]
    optimizer = torch.optim.AdamW(first, lr=1e-2)
    balancer = tb.Balancer(optimizer, model, RECIPE)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": late, "lr": 0.25})
    train(model, optimizer, 6, start=2)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    return {"units": units_of(balancer), "sizes": sizes, "rates": [group["lr"] for group in optimizer.param_groups]}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_that_is_added_in_training_joins_on_all_processes(engine):
    ranks = run(2, late_group, engine)
    assert equal(*ranks)
    assert ranks[0]["sizes"] == [14, 2]
    assert ranks[0]["rates"] == [1e-2, 0.25]
    (neck,) = [unit for unit in ranks[0]["units"] if unit[0] == "neck"]
    assert neck[2] != 1.0


def groups_of(engine: str) -> list[Any]:
    model = make(engine)[0]
    named = dict(model.named_parameters())
    decayed = [p for p in named.values() if p.ndim > 1]
    rest = [p for p in named.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": []}, {"params": rest, "name": "no decay"}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)
    given = list(optimizer.param_groups)
    tb.Balancer(optimizer, model, RECIPE)
    layouts = []
    names = {id(p): name.removeprefix("module.") for name, p in named.items()}
    optimizer.register_step_pre_hook(
        lambda o, *_: layouts.append([([names[id(p)] for p in g["params"]], g["weight_decay"]) for g in o.param_groups])
    )
    for step in range(5):
        train(model, optimizer, step + 1, start=step)
        assert all(ours is theirs for ours, theirs in zip(optimizer.param_groups, given, strict=True))
    assert all(layout == layouts[0] for layout in layouts)
    return layouts[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_are_split_in_the_same_way_in_every_step_and_put_back(engine):
    first, second = run(2, groups_of, engine)
    assert first == second
    assert ([], 0.0) in first
    assert (["neck.weight"], 0.1) in first
    assert (["neck.bias"], 0.0) in first
    assert all(decay == (0.0 if all(n.endswith("bias") or "norm" in n for n in ns) else 0.1) for ns, decay in first)
