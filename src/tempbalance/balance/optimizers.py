"""Which optimizers can be balanced: look through wrappers, and refuse those that need one rate for all parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tempbalance.balance.recipe import Recipe
from tempbalance.errors import BalanceError

__all__ = ["DEEPSPEED", "FSDP1", "check_optimizer", "find_levels", "is_divided", "is_of", "unwrap"]

DEEPSPEED = (
    "DeepSpeed keeps parameters and learning rates in its own groups and ignores those of others: train with FSDP2 "
    "(torch.distributed.fsdp.fully_shard) or DDP, which are supported"
)
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel) flattens parameters into vectors, which have no spectrum: use FSDP2, "
    "torch.distributed.fsdp.fully_shard(model), and build the optimizer after it"
)
# Attributes in which a wrapper keeps the optimizer that takes its steps: Accelerate, Lightning and many others; SAM;
# Lookahead; ZeroRedundancyOptimizer.
_INNER = ("optimizer", "base_optimizer", "_base_optimizer", "optim")
# Optimizers that find one learning rate for all parameters, by the start of their class names.
_ONE_RATE = ("Prodigy", "DAdapt", "DAdaptation")


def find_levels(optimizer: Any) -> list[Optimizer]:
    """Return an optimizer and those inside it that train the same parameters, the outermost first.

    The last one takes the steps.

    Raises:
        BalanceError: It has no step hooks, or is of DeepSpeed.
    """
    levels = [optimizer, *_inside(optimizer)]
    if any(is_of(level, "deepspeed") for level in levels):
        raise BalanceError(DEEPSPEED)
    if not isinstance(levels[-1], Optimizer) or not hasattr(levels[-1], "_optimizer_step_pre_hooks"):
        raise BalanceError(
            f"{type(optimizer).__name__} has no step hooks: pass an optimizer derived from torch.optim.Optimizer, "
            "or the one inside your wrapper"
        )
    return levels


def unwrap(optimizer: Any) -> Optimizer:
    """Return the optimizer that takes the steps of a wrapper."""
    return find_levels(optimizer)[-1]


def _inside(optimizer: Any) -> Iterator[Any]:
    seen = [optimizer]
    while True:
        found = (getattr(seen[-1], name, None) for name in _INNER)
        inner = next((each for each in found if _steps_for(each, seen[-1]) and all(each is not s for s in seen)), None)
        if inner is None:
            return
        seen.append(inner)
        yield inner


def _steps_for(inner: Any, outer: Any) -> bool:
    """Return whether an attribute of a wrapper is an optimizer of the same parameters."""
    if not isinstance(inner, Optimizer) and not is_of(inner, "deepspeed"):
        return False
    ours, theirs = ({id(p) for p in _parameters(each)} for each in (outer, inner))
    return not ours or ours >= theirs


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    for group in getattr(optimizer, "param_groups", None) or ():
        yield from group["params"]


def is_of(value: object, package: str) -> bool:
    """Return whether a class of a value is defined in a package."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(value).__mro__)


def is_divided(optimizer: Optimizer) -> bool:
    """Return whether the parameters of an optimizer are divided among processes (ZeroRedundancyOptimizer)."""
    return any(cls.__name__ == "ZeroRedundancyOptimizer" for cls in type(optimizer).__mro__)


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
    if "lr" in recipe.keys and any(name.startswith(_ONE_RATE) for name in classes):
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
