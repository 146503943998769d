"""Check every installed optimizer with a Balancer, and write docs/reference/optimizers.md.

    pip install --no-deps timm schedulefree bitsandbytes prodigyopt pytorch_optimizer  # and others
    python benchmarks/optimizers.py                         # every package that is installed
    python benchmarks/optimizers.py --only torch schedulefree
    python benchmarks/optimizers.py --only torch --match Adam --verbose

Each optimizer trains a small network with and without a balancer. ``optimizers.json`` has the results of every package;
the page is written from all of them. Packages that are missing are named, and keep the results that they have.
"""

from __future__ import annotations

import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # steps that an optimizer compiles are run without the compiler

import argparse
import contextlib
import copy
import io
import json
import logging
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from optimizer_cases import PACKAGES, Case, find_cases, set_mode, version
from optimizer_page import page
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.balance.optimizers import unwrap
from tempbalance.errors import BalanceError

HERE = Path(__file__).parent
RESULTS = HERE / "optimizers.json"
PAGE = HERE.parent / "docs" / "reference" / "optimizers.md"
STEPS, HALF = 6, 3
BALANCED = tb.Recipe(
    name="balanced",
    assignment=tb.assign.Linear(0.5, 1.5),
    every=tb.Every(steps=2),
    tolerance=0.05,
    select=tb.Select(embeddings=True),
)
ONCE = replace(BALANCED, every=tb.Every(steps=1000))
NEUTRAL = replace(BALANCED, assignment=tb.assign.Linear(1.0, 1.0))


@dataclass
class Result:
    """What was found for one optimizer: works, refused, not run or fails; why; what its steps need; notes."""

    name: str
    verdict: str
    text: str = ""
    needs: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Run:
    """The parameters of a finished run, the options after each step, and the groups inside the first step, by name."""

    weights: dict[str, Tensor]
    options: list[list[dict[str, Any]]]
    same_groups: bool
    inside: list[dict[str, Any]]
    balancer: tb.Balancer | None

    def equals(self, other: Run, tolerance: float = 0.0) -> bool:
        """Return whether all parameters are equal, bit for bit or up to a relative tolerance."""
        pairs = [(self.weights[name], other.weights[name]) for name in self.weights]
        return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in pairs)


def same(a: Any, b: Any) -> bool:
    """Return whether two values, with tensors in them, are equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (callable(a) or a == b)


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that takes the steps."""
    with contextlib.suppress(BalanceError):
        return unwrap(optimizer)
    return optimizer


def options(optimizer: Any) -> list[dict[str, Any]]:
    """Return copies of the options of all groups."""
    groups = innermost(optimizer).param_groups
    return [{k: copy.deepcopy(v) for k, v in g.items() if k not in ("params", "tempbalance")} for g in groups]


class Trainer:
    """Runs one case in many ways."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tolerance = 0.0
        self.options = {key for group in options(self.start(None)[1]) for key in group}

    def start(self, recipe: tb.Recipe | None, groups: Callable[[nn.Module], Any] | None = None) -> tuple[Any, ...]:
        """Return a model, its optimizer and its balancer."""
        net = self.case.net()
        numpy.random.seed(0)  # of Kron
        optimizer = self.case.build(net, None if groups is None else groups(net))
        balancer = None if recipe is None else tb.Balancer(optimizer, net, recipe)
        return net, optimizer, balancer

    def run(
        self,
        recipe: tb.Recipe | None,
        groups: Callable[[nn.Module], Any] | None = None,
        then: tb.Recipe | str | None = "",
    ) -> Run:
        """Train. With ``then``, half of the steps are made by a run that loads the checkpoint of the other half."""
        net, optimizer, balancer = self.start(recipe, groups)
        given, seen, inside = list(innermost(optimizer).param_groups), [], []
        self.watch(net, optimizer, inside)
        kept = True
        for step in range(STEPS):
            if step == HALF:
                set_mode(optimizer, "eval")
                if then != "":
                    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
                    net, optimizer, balancer = self.start(then)
                    net.load_state_dict(saved[0])
                    optimizer.load_state_dict(saved[1])
                    given = list(innermost(optimizer).param_groups)
                set_mode(optimizer, "train")
                torch.manual_seed(1)
            self.case.step(net, optimizer, step)
            kept &= all(a is b for a, b in zip(innermost(optimizer).param_groups, given, strict=True))
            seen.append(options(optimizer))
        return Run(net.state_dict(), seen, kept, inside, balancer)

    def watch(self, net: nn.Module, optimizer: Any, found: list[dict[str, Any]]) -> None:
        """Fill a list with the groups of the first step."""
        names = {id(p): name for name, p in net.named_parameters()}

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not found:
                found.extend(
                    {**g, "params": [names.get(id(p), "") for p in g["params"]]} for g in optimizer.param_groups
                )

        innermost(optimizer).register_step_pre_hook(note)


def check(case: Case) -> Result:
    """Run all checks of one optimizer."""
    try:
        case.settle()
    except RuntimeError as error:
        return refused(case, runs=False) or Result(case.name, "not run", str(error))
    needs = case.mode or (case.groups if case.groups in ("matrices only", "groups with use_muon") else "")
    if (refusal := refused(case)) is not None:
        return replace(refusal, needs=needs)
    trainer = Trainer(case)
    problems: list[str] = []
    notes: list[str] = []
    for each in (neutral, exact, checkpoints, exceptions, decay):
        try:
            each(trainer, problems, notes)
        except Exception as error:
            logging.debug("%s", traceback.format_exc())
            problems.append(f"{each.__name__}: {type(error).__name__}: {error}".split("\n")[0][:200])
    return Result(case.name, "fails" if problems else "works", "; ".join(problems), needs, tuple(notes))


def refused(case: Case, *, runs: bool = True) -> Result | None:
    """Return the result of an optimizer that is refused; it must be as before."""
    net = case.net()
    try:
        optimizer = case.build(net)
    except Exception:  # as in every other form
        return None
    before = [frozen(level) for level in case.levels_of(optimizer)]
    try:
        tb.Balancer(optimizer, net, BALANCED)
    except BalanceError as error:
        if [frozen(level) for level in case.levels_of(optimizer)] != before:
            return Result(case.name, "fails", "changed by a refusal")
        problems: list[str] = []
        notes: list[str] = []
        if runs:
            decay(Trainer(case), problems, notes)
        if problems:
            return Result(case.name, "fails", "; ".join(problems))
        works = ("weight decay works",) if runs and "no weight decay" not in notes else ()
        return Result(case.name, "refused", str(error), notes=works)
    except Exception as error:
        logging.debug("%s", traceback.format_exc())
        return Result(case.name, "fails", f"the constructor: {type(error).__name__}: {error}")
    return None


def frozen(optimizer: Any) -> Any:
    """Return what must not change: every attribute, the hooks, and the groups."""
    content = {key: (id(value), repr(value) if key.endswith("hooks") else "") for key, value in vars(optimizer).items()}
    groups = [(id(g), {k: (id(v), repr(v)) for k, v in g.items()}) for g in getattr(optimizer, "param_groups", ())]
    return content, groups


def neutral(trainer: Trainer, problems: list[str], notes: list[str]) -> None:
    """With multipliers of 1 nothing changes, and the groups are always those of the user."""
    plain, again, ours = trainer.run(None), trainer.run(None), trainer.run(NEUTRAL)
    if not plain.equals(again):
        notes.append("not deterministic")
    elif not ours.equals(plain) and ours.equals(plain, 1e-6):
        trainer.tolerance = 1e-6
        notes.append("sums over all parameters, so neutral runs are equal up to rounding")
    elif not ours.equals(plain):
        problems.append("neutral: other parameters")
    if not ours.same_groups:
        problems.append("other groups between steps")
    elif plain.equals(again) and not same(ours.options, plain.options):
        pairs = [pair for step in zip(ours.options, plain.options, strict=True) for pair in zip(*step, strict=True)]
        other = {key for a, b in pairs for key in a.keys() | b.keys() if not same(a.get(key), b.get(key))}
        if other & trainer.options:
            problems.append("neutral: other options")
        notes.append(f"the option {' and '.join(sorted(other))} has the value of a part of the group")


def exact(trainer: Trainer, problems: list[str], notes: list[str], key: str = "lr") -> None:
    """The rates are multiplied, and the run is that of an optimizer with these groups."""
    recipe = ONCE if key == "lr" else replace(ONCE, target="weight_decay")
    plain, ours = trainer.run(None), trainer.run(recipe)
    base = {name: g[key] for g in plain.inside for name in g["params"]}
    multipliers = {name: unit.multiplier for unit in ours.balancer.units for name in unit.parameters}
    applied = {name: g[key] for g in ours.inside for name in g["params"]}
    if any(value != base[name] * multipliers.get(name, 1.0) for name, value in applied.items()):
        problems.append(f"exact: another {key} inside the step")
    if ours.equals(plain) and any(float(value) for value in base.values()):
        problems.append(f"exact: no effect of {key}")

    def by_hand(net: nn.Module) -> list[dict[str, Any]]:
        parameters = dict(net.named_parameters())
        fresh = options(trainer.start(None)[1])
        owner = {name: i for i, g in enumerate(plain.inside) for name in g["params"]}
        split = [(g["params"], g[key]) for g in ours.inside if g["params"]]
        return [{**fresh[owner[of[0]]], key: value, "params": [parameters[each] for each in of]} for of, value in split]

    try:
        hand = trainer.run(None, by_hand)
    except Exception:
        hand = None
    inside = [(g["params"], g[key]) for g in ours.inside if g["params"]]
    if hand is None or [(g["params"], g[key]) for g in hand.inside] != inside:
        notes.append("its constructor takes no groups")
    elif not ours.equals(hand) and len(trainer.case.levels_of(trainer.start(None)[1])) > 1:
        notes.append(f"what the wrapper adds to a step uses the scheduled {key}")
    elif not ours.equals(hand):
        problems.append(f"exact: not the run with these groups by hand ({key})")


def checkpoints(trainer: Trainer, problems: list[str], notes: list[str]) -> None:
    """State dicts are exchanged with plain runs, and resumed runs are equal to uninterrupted ones."""
    plain, through = trainer.run(None), None
    with contextlib.suppress(Exception):
        through = trainer.run(None, then=None)
    if through is None:
        notes.append("its state dict cannot be loaded")
        return
    if not through.equals(plain):
        notes.append("its own checkpoints do not resume bit for bit")
    if not trainer.run(None, then=NEUTRAL).equals(through, trainer.tolerance):
        problems.append("plain into balanced: other parameters")
    if not trainer.run(NEUTRAL, then=None).equals(through, trainer.tolerance):
        problems.append("balanced into plain: other parameters")
    ours, resumed = trainer.run(BALANCED), trainer.run(BALANCED, then=BALANCED)
    if through.equals(plain):
        if not resumed.equals(ours) or repr(resumed.balancer.units) != repr(ours.balancer.units):
            problems.append("resume: other parameters")
        elif same(through.options, plain.options) and not same(resumed.options, ours.options):
            problems.append("resume: other options")


def exceptions(trainer: Trainer, problems: list[str], notes: list[str]) -> None:
    """An exception in a step or in a closure leaves the groups as they are."""
    seen = []
    for recipe in (None, BALANCED):
        net, optimizer, _ = trainer.start(recipe)
        inner = innermost(optimizer)
        trainer.case.step(net, optimizer, 0)
        given = list(inner.param_groups)
        closed = trainer.case.mode in ("a closure", "gradients and a closure")
        inside = inner.register_step_pre_hook(_interrupt)
        for closure in (False, True) if closed else (False,):
            with contextlib.suppress(KeyboardInterrupt):
                optimizer.step(_interrupt) if closure else trainer.case.step(net, optimizer, 1)
                problems.append("exceptions: not raised")
            if any(a is not b for a, b in zip(inner.param_groups, given, strict=True)):
                problems.append("exceptions: other groups")
            inside.remove()
        seen.append([{key: g.get(key) for key in ("lr", "weight_decay")} for g in inner.param_groups])
    if not same(*seen):
        problems.append("exceptions: other options")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def decay(trainer: Trainer, problems: list[str], notes: list[str]) -> None:
    """The same for weight decay, if the optimizer has it."""
    net, optimizer, _ = trainer.start(None)
    try:
        tb.Balancer(optimizer, net, replace(BALANCED, target="weight_decay"))
    except BalanceError:
        notes.append("no weight decay")
        return
    ours, plain = trainer.run(replace(NEUTRAL, target="weight_decay")), trainer.run(None)
    if not ours.equals(plain, trainer.tolerance) and "not deterministic" not in notes:
        problems.append("neutral weight decay: other parameters")
    exact(trainer, problems, notes, "weight_decay")


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Silence what optimizers print and warn of."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if not verbose:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def main() -> None:
    """Run the checks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PACKAGES, metavar="PACKAGE", help="packages to check")
    parser.add_argument("--match", default="", help="check the optimizers with this in their names; writes nothing")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and what optimizers print")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if chosen.verbose else logging.CRITICAL, stream=sys.stderr)
    logging.getLogger("tempbalance").setLevel(logging.CRITICAL)
    packages = chosen.only or list(PACKAGES)
    if len(packages) > 1:  # each in a process of its own
        for package in packages:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", package], check=False)
        return
    (package,) = packages
    with tempfile.TemporaryDirectory() as folder:  # some step with others: here there is one process
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        check_package(package, chosen.match, chosen.verbose)
        torch.distributed.destroy_process_group()


def check_package(package: str, match: str, verbose: bool) -> None:
    """Check the optimizers of a package, and store the results unless only some were asked for."""
    try:
        with quiet(verbose):
            cases = list(find_cases(package))
    except ImportError as error:
        print(f"{package} is not installed or does not load: {error}")
        return
    found = []
    for case in cases:
        if match in case.name:
            started = time.perf_counter()
            with quiet(verbose):
                result = check(case)
            found.append(asdict(result))
            print(
                package,
                *(each for each in found[-1].values() if each),
                f"{time.perf_counter() - started:.1f} s",
                flush=True,
            )
    if not match:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[package] = {"version": version(package), "results": found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
