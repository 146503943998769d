"""Check by a few steps of a small copy that an optimizer can be split, and that its options have an effect.

Some optimizers compute a value over a whole group, keep a list with one entry per group, or ignore ``lr``. Nothing in
their groups tells.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from tempbalance.errors import BalanceError

__all__ = ["check_by_steps"]

_STEPS = 4
_SIDE = 8  # largest side of a small parameter
_VALUES = {"lr": (0.01, 0.02), "weight_decay": (0.1, 100.0)}  # for all groups, and for the groups that differ
_DIFFERENT = 1e-4  # relative to the distance that a parameter moves; sums in another order differ by less

_Moved: TypeAlias = list[tuple[Tensor, Tensor]]  # parameters, and what they were before


def check_by_steps(optimizer: Optimizer, keys: Sequence[str]) -> None:
    """Check that an optimizer makes the same steps with one group per parameter, and that each option has an effect.

    The optimizers of torch are known to. One that cannot be copied, or whose steps need more than gradients and a
    closure, is not checked. The optimizer is not changed.

    Raises:
        BalanceError: It does not; the message says which and what to do.

    Example:
        >>> class Sign(torch.optim.SGD):
        ...     def step(self, closure=None):
        ...         for group in self.param_groups:
        ...             for parameter in group["params"]:
        ...                 parameter.data -= 1e-3 * parameter.grad.sign()
        >>> check_by_steps(Sign([torch.nn.Parameter(torch.ones(2))], lr=0.1), ["lr"])
        Traceback (most recent call last):
            ...
        tempbalance.errors.BalanceError: Sign ignores the lr of its groups: ...
    """
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] == "torch":
        return
    for closure in (False, True):
        with contextlib.suppress(Exception):
            whole = _steps(optimizer, closure=closure)
            if 0 < sum(_distance(p, start) for p, start in whole) < math.inf:
                break
    else:
        return
    parts = _attempt(f"{kind.__name__} fails with several parameter groups", optimizer, closure=closure)
    if not _equal(whole, parts):
        raise BalanceError(
            f"{kind.__name__} makes other steps if its parameter groups are split, because it computes a value, keeps "
            "a list or draws random numbers by group: use another optimizer, such as AdamW"
        )
    for key, half in itertools.product(keys, (0, 1)):  # some use the option of their first group for all
        what = f"{kind.__name__} fails with different values of {key}"
        changed = _attempt(what, optimizer, closure=closure, key=key, half=half)
        pairs = [(changed[i][0], parts[i][0]) for i in _halves([p for p, _ in parts])[half]]
        if pairs and all(torch.equal(p, other) for p, other in pairs):
            raise BalanceError(
                f"{kind.__name__} ignores the {key} of its groups: use another optimizer, such as AdamW, or another "
                "target of the recipe"
            )


def _halves(parameters: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Divide parameters into two halves, both with weight matrices: some optimizers do not decay vectors."""
    order = sorted(range(len(parameters)), key=lambda i: parameters[i].ndim <= 1)
    return order[::2], order[1::2]


def _equal(a: _Moved, b: _Moved) -> bool:
    """Return whether all parameters are equal, except for the order in which numbers are summed."""
    pairs = zip(a, b, strict=True)
    return all(_distance(p, other) <= _DIFFERENT * _distance(p, start) for (p, start), (other, _) in pairs)


def _attempt(what: str, optimizer: Optimizer, **how: Any) -> _Moved:
    """Make the steps with one group per parameter; an error in them is raised as a BalanceError that says ``what``."""
    try:
        return _steps(optimizer, split=True, **how)
    except Exception as error:
        raise BalanceError(f"{what}: {error}; use another optimizer, such as AdamW") from error


def _steps(optimizer: Optimizer, *, closure: bool, split: bool = False, key: str = "", half: int = 0) -> _Moved:
    """Return the parameters of a small copy after and before a few steps; one half of the parts has another ``key``."""
    copied, parameters = _small_copy(optimizer)
    if split:
        copied.param_groups[:] = [_part(group, p) for group in copied.param_groups for p in group["params"]]
    different = _halves(parameters)[half] if key else []
    for i, part in enumerate(copied.param_groups):
        for name in _VALUES.keys() & part.keys():
            value = _VALUES[name][name == key and i in different]
            part[name] = torch.full_like(part[name], value) if isinstance(part[name], Tensor) else value
    before = [p.detach().clone() for p in parameters]
    draw = torch.Generator().manual_seed(0)

    def evaluate() -> Tensor:
        for i, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=draw).add_(1.0).mul_(i + 1)  # steps do not cancel
            parameter.grad = gradient.to(parameter)
        return torch.ones((), requires_grad=True)

    step: Callable[..., Any] = getattr(type(copied).step, "__wrapped__", type(copied).step)  # without hooks
    with _unnoticed(parameters):
        for _ in range(_STEPS):
            evaluate()
            step(copied, *([evaluate] if closure else []))
    return list(zip(parameters, before, strict=True))


def _part(group: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    options = {key: value for key, value in group.items() if key != "params"}
    return {**copy.deepcopy(options), "params": [parameter]}


def _small_copy(optimizer: Optimizer) -> tuple[Any, list[Tensor]]:
    """Return a copy without state, with at most two small parameters per group, and these parameters."""
    small = {id(p): _small(p, i) for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    copied = object.__new__(type(optimizer))
    memo: dict[int, Any] = {**small, id(optimizer): copied, id(optimizer.state): collections.defaultdict(dict)}
    groups = [
        {
            **{key: value for key, value in group.items() if key != "param_names"},
            "params": sorted(group["params"], key=lambda p: p.ndim <= 1)[:2],
        }
        for group in optimizer.param_groups
    ]
    vars(copied)["param_groups"] = copy.deepcopy(groups, memo)
    memo[id(optimizer.param_groups)] = copied.param_groups
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            vars(copied)[name] = collections.OrderedDict()
        elif name not in ("step", "param_groups"):  # a scheduler wraps ``step``
            vars(copied)[name] = copy.deepcopy(value, memo)
    return copied, [p for group in copied.param_groups for p in group["params"]]


def _small(parameter: Tensor, seed: int) -> Tensor:
    shape = [min(side, _SIDE) for side in parameter.shape]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1000 + seed))
    return torch.nn.Parameter(
        values.to(device=parameter.device, dtype=torch.promote_types(parameter.dtype, torch.float32))
    )


@contextlib.contextmanager
def _unnoticed(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Silence prints and warnings; start the random states of torch, NumPy and Python, and put the old ones back."""
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm((a - b).detach().to(torch.complex128 if a.is_complex() else torch.float64)))
