"""The state of a balancer: typed, versioned, and saved as one JSON text in the state dict of the optimizer.

The text is under ``KEY`` in the first parameter group of the state dict, and only there: between steps the optimizer's
own groups have no key of ours. A text is a single leaf for code that flattens, gathers or broadcasts a state dict.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import msgspec

from tempbalance._saved import Count
from tempbalance.errors import BalanceError
from tempbalance.types import Status

__all__ = ["AFRESH", "KEY", "BalanceState", "CachedFit", "UnitRecord", "texts_in"]

KEY = "tempbalance"  # key of the text in the first group of a state dict
AFRESH = f"delete the key {KEY!r} from its parameter groups to start balancing afresh"
_VERSION = 2
_HAS_ALPHA = (Status.OK, Status.RANDOM)

_Positive: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_Scalar: TypeAlias = float | int | bool | str | None


@dataclass(frozen=True, slots=True)
class CachedFit:
    """The last fit of one weight."""

    alpha: float = math.nan
    stderr: _Positive = math.nan
    radius: _Positive = math.inf  # Frobenius norm of a change up to which alpha stays within the tolerance
    status: Status | None = None  # ``RANDOM`` with a fit that looks like a random matrix; None if measuring raised
    error: str = ""  # what it raised

    @property
    def reason(self) -> str:
        """Why there is no alpha, or why it says little; empty for a good fit."""
        if self.status is None:
            return self.error
        return "" if self.status is Status.OK else self.status.message


@dataclass(slots=True, kw_only=True)
class UnitRecord:
    """What is kept of one unit; see also ``UnitState``."""

    alpha: float = math.nan
    stderr: _Positive = math.nan
    first_alpha: float = math.nan  # at the first refresh at which the unit had one
    status: Status | None = None
    reason: str = ""
    multiplier: _Positive = 1.0  # in effect; during a ramp, the value at its end
    previous: _Positive = 1.0
    since: Count | None = None  # optimizer steps taken when it took effect
    pending: tuple[_Positive, Count] | None = None  # the next multiplier, and the steps taken when it takes effect


@dataclass(slots=True, kw_only=True)
class BalanceState:
    """Everything that a balancer keeps from step to step, except for copies of weights.

    Attributes:
        version: Version of the format.
        steps: Optimizer steps taken.
        units: Record of each unit, by name.
        fits: Last fit of each weight, by name.
        groups: Names of the parameters in each group of the optimizer when the state was saved; None for a parameter
            that is not of the model.
        options: Options that the optimizer itself has set to different values in the parts of a group, by the name of
            the first parameter of the part.
        recipe: Name of the recipe, and digests of its assignment and target, and of how it measures; empty if they are
            not known.
        unplanned: Parameters in the optimizer that are in no unit until the next refresh: they were frozen at the last
            one, or have been added since. None keeps the plan of the balancer that loads the state.
        tolerance: Tolerance of the fits; None if it is not known.
        counter: The optimizer's own count of its steps; None if it has none.

    Example:
        >>> state = BalanceState(units={"head": UnitRecord(alpha=3.0, multiplier=1.5)}, groups=[["head.weight"]])
        >>> BalanceState.from_json(state.to_json()).units["head"].multiplier
        1.5
    """

    version: int = _VERSION
    steps: Count = 0
    units: dict[str, UnitRecord] = field(default_factory=dict)
    fits: dict[str, CachedFit] = field(default_factory=dict)
    groups: list[list[str | None]] = field(default_factory=list)
    options: dict[str, dict[str, _Scalar | list[_Scalar]]] = field(default_factory=dict)
    recipe: str = ""
    unplanned: list[str] | None = None
    tolerance: _Positive | None = None
    counter: Count | None = None

    def to_json(self) -> str:
        """Return the state as one line of JSON; NaN, an infinite radius and None are left out."""
        return json.dumps(dataclasses.asdict(self, dict_factory=_without_missing))

    @classmethod
    def from_json(cls, text: object) -> BalanceState:
        """Return the state in a result of ``to_json``, after a check of every value in it.

        Raises:
            BalanceError: It is damaged, or another version wrote it; the message names the value.
        """
        try:
            return _read(text)
        except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
            raise BalanceError(
                f"the balancer's state in this optimizer state cannot be used: {error}; load another checkpoint, or "
                f"{AFRESH}"
            ) from None

    def check(self) -> None:
        """Raise a ValueError if two values do not fit together."""
        for name, unit in self.units.items():
            if (unit.since or 0) > self.steps:
                raise ValueError(f"the multiplier of {name} is in effect since step {unit.since} of {self.steps}")
        for name, fit in self.fits.items():
            if math.isnan(fit.alpha) == (fit.status in _HAS_ALPHA):
                raise ValueError(f"{name} has alpha {fit.alpha:g} with status {fit.status}")


@dataclass
class _Version:
    """The field that is read first; the states of version 1 had none."""

    version: int = 1


def _read(text: object) -> BalanceState:
    if not isinstance(text, str):
        raise ValueError(f"it is a {type(text).__name__}, not a text")
    version = msgspec.json.decode(text, type=_Version).version
    if version != _VERSION:
        raise ValueError(f"version {version} wrote it, and this version of tempbalance reads {_VERSION}")
    state = msgspec.json.decode(text, type=BalanceState)
    if unknown := json.loads(text).keys() - {each.name for each in dataclasses.fields(BalanceState)}:
        raise ValueError(f"it has the unknown key {min(unknown)!r}")
    state.check()
    return state


def texts_in(groups: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the texts in parameter groups."""
    return [group[KEY] for group in groups if KEY in group]


def _without_missing(items: list[tuple[str, Any]]) -> dict[str, Any]:
    missing = (value is None or (isinstance(value, float) and not math.isfinite(value)) for _, value in items)
    return {key: value for (key, value), none in zip(items, missing, strict=True) if not none}
