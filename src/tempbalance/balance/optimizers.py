"""Which optimizers can be balanced: look through wrappers, and refuse those that need one rate for all parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tempbalance.balance.assign import Assignment
from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError

__all__ = ["DEEPSPEED", "FSDP1", "check_optimizer", "find_family", "find_levels", "is_divided", "is_of", "unwrap"]

DEEPSPEED = (
    "DeepSpeed keeps parameters and learning rates in its own groups and ignores those of others: train with FSDP2 "
    "(torch.distributed.fsdp.fully_shard) or DDP, which are supported"
)
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) flattens parameters into vectors, which have no spectrum: use FSDP2, "
    "torch.distributed.fsdp.fully_shard(model), and build the optimizer after it"
)
# Optimizers that find one learning rate for all parameters, by the start of their class names; Prodigy and what follows
# it have the first guess among their options.
_ONE_RATE, _FIRST_GUESS = ("Prodigy", "DAdapt"), "d0"
# Part of the name of a class, and the family of the optimizer (see ``ByShape``); the first match counts.
_FAMILIES = (("muon", "muon"), ("adam", "adam"), ("adafactor", "adam"), ("lion", "adam"), ("sgd", "sgd"))


def find_levels(optimizer: Any) -> list[Optimizer]:
    """Return an optimizer and those inside it that train the same parameters, the outermost first.

    The last one takes the steps. Accelerate, Lightning, SAM, Lookahead, schedule-free wrappers and
    ``ZeroRedundancyOptimizer`` keep it in an attribute. A wrapper without groups is left out.

    Raises:
        BalanceError: Its steps call no hooks, it has several optimizers inside, or it is of DeepSpeed.
    """
    levels = [optimizer, *_inside(optimizer)]
    if any(is_of(level, "deepspeed") for level in levels):
        raise BalanceError(DEEPSPEED)
    inner = levels[-1]
    if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise BalanceError(
            f"{type(optimizer).__name__} has no step hooks: pass an optimizer derived from torch.optim.Optimizer, "
            "or the one inside your wrapper"
        )
    if not getattr(type(inner).step, "hooked", False):  # set by the constructor of torch.optim.Optimizer
        raise BalanceError(
            f"the steps of {type(inner).__name__} call no step hooks: call super().__init__() in its constructor, or "
            "pass the optimizer inside it"
        )
    return [level for level in levels if hasattr(level, "param_groups")]


def unwrap(optimizer: Any) -> Optimizer:
    """Return the optimizer that takes the steps of a wrapper."""
    return find_levels(optimizer)[-1]


def _inside(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizer in an attribute, the one in an attribute of that, and so on."""
    seen = [optimizer]
    while found := [each for each in _kept_by(seen[-1]) if all(each is not one for one in seen)]:
        if len(found) > 1 or not _steps_for(found[0], seen[-1]):
            names = " and ".join(sorted({type(each).__name__ for each in found}))
            raise BalanceError(
                f"{type(seen[-1]).__name__} leaves some of its parameters to {names}: build a Balancer for each "
                "optimizer that takes steps"
            )
        seen.append(found[0])
        yield found[0]


def _kept_by(optimizer: Any) -> list[Any]:
    """Return the optimizers in attributes, and in lists and values of dicts there, that train parameters of its own."""
    own = {id(p) for p in _parameters(optimizer)}
    values = itertools.chain.from_iterable(map(_each, getattr(optimizer, "__dict__", {}).values()))
    kept = {id(each): each for each in values if isinstance(each, Optimizer) or is_of(each, "deepspeed")}
    theirs = ((each, {id(p) for p in _parameters(each)}) for each in kept.values())
    return [each for each, parameters in theirs if not own or not parameters or own & parameters]


def _each(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else [value]


def _steps_for(inner: Any, outer: Any) -> bool:
    """Return whether an optimizer takes all steps of a wrapper; under ZeRO, those of this process."""
    own, other = ({id(p) for p in _parameters(each)} for each in (outer, inner))
    return not own or own <= other or is_divided(outer)


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", None) or ():
        yield from group["params"]


def is_of(value: object, package: str) -> bool:
    """Return whether a class of a value is defined in a package."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def is_divided(optimizer: Optimizer) -> bool:
    """Return whether the parameters of an optimizer are divided among processes (ZeroRedundancyOptimizer)."""
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__)


def _steps_in_backward(optimizer: Any) -> bool:
    """Return whether the steps are not in ``step()``: LOMO; optimi; ZeroRedundancyOptimizer."""
    released = getattr(optimizer, "defaults", {}).get("gradient_release")
    return hasattr(optimizer, "fused_backward") or bool(released) or getattr(optimizer, "_overlap_with_ddp", False)


def find_family(optimizer: Optimizer) -> str | None:
    """Return the family of an optimizer, ``"adam"``, ``"sgd"`` or ``"muon"``; None if its class does not tell it."""
    names = [cls.__name__.lower() for cls in type(optimizer).__mro__]
    return next((family for name in names for pattern, family in _FAMILIES if pattern in name), None)


def _with_inner(assignment: Assignment) -> Iterator[Assignment]:
    """Yield an assignment, and those that it passes units to."""
    yield assignment
    for each in assignment.inner:
        yield from _with_inner(each)


def _check_family(optimizer: Optimizer, recipe: Recipe) -> None:
    """Check that multipliers by shape are for an optimizer of this family, if its class tells it."""
    expected, known = recipe.assignment.optimizer_family, find_family(optimizer)
    if expected is not None and known not in {None, expected}:
        raise BalanceError(
            f"the multipliers of {recipe.name} are for optimizers like {expected}, but {type(optimizer).__name__} is "
            f"like {known}: give optimizer={known!r}"
        )
    has_factors = any("adjust_lr_fn" in group for group in optimizer.param_groups)  # torch.optim.Muon
    if has_factors and any(getattr(each, "rule", "").startswith("muon") for each in _with_inner(recipe.assignment)):
        raise BalanceError(
            f"{type(optimizer).__name__} has the factors of {recipe.name} built in (adjust_lr_fn): leave the recipe out"
        )


def check_optimizer(levels: list[Optimizer], recipe: Recipe) -> None:
    """Check that an optimizer can take different values of the multiplied options, and can keep the recipe's tensors.

    Raises:
        BalanceError: It cannot; the message says why and what to do.
    """
    optimizer = levels[-1]
    kind = type(optimizer).__name__
    classes = [cls.__name__ for cls in type(optimizer).__mro__]
    if any("LBFGS" in name for name in classes):
        raise BalanceError(f"{kind} takes all parameters in one group, so units cannot have different learning rates")
    if early := [type(level).__name__ for level in levels if _steps_in_backward(level)]:
        raise BalanceError(
            f"{early[0]} updates parameters during backward(), not in step(): use one that does not, or leave out the "
            "option that says so (gradient_release, overlap_with_ddp)"
        )
    _check_family(optimizer, recipe)
    if optimizer.param_groups is not optimizer.param_groups:
        raise BalanceError(f"{kind} makes a new list of its groups at each access, so they cannot be split in a step")
    one_rate = any(name.startswith(_ONE_RATE) for name in classes)
    if "lr" in recipe.keys and (one_rate or any(_FIRST_GUESS in group for group in optimizer.param_groups)):
        raise BalanceError(
            f"{kind} finds one learning rate for all parameters and refuses different ones: use AdamW with a tuned "
            "rate, or a recipe with target='weight_decay'"
        )
    if recipe.spectrum_of == "update" and any(map(is_divided, levels)):
        raise BalanceError(
            "ZeroRedundancyOptimizer keeps the state of a parameter on one process, but every process needs the "
            "initial weights: use FSDP2, or a recipe with spectrum_of='weights'"
        )
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, Tensor) and value.numel() > 1:
                raise BalanceError(
                    f"{kind} keeps {key} of all parameters of a group in one tensor, so its groups cannot be split: "
                    "use another optimizer, such as AdamW"
                )
        if "lr" in recipe.keys and group.get("relative_step"):
            raise BalanceError(
                f"{kind} with relative_step=True computes its own learning rate and ignores lr: set "
                "relative_step=False, warmup_init=False and lr=..."
            )
        for key in recipe.keys:
            if key not in group:
                raise BalanceError(f"{kind} has no {key}, which the recipe multiplies")
            if not isinstance(group[key], (int, float, Tensor)):
                raise BalanceError(
                    f"the {key} of {kind} is {group[key]!r}, not a number: set it "
                    "(Adafactor: relative_step=False and lr=...)"
                )
