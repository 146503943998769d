"""A balancing method as a frozen dataclass: the measured weights, the assignment, and the multiplied options."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from tempbalance.balance.assign import Assignment
from tempbalance.errors import ArgumentError, ArgumentTypeError, check_integer, check_numbers, check_type
from tempbalance.layers import KINDS, Select, Unit, Weight, find_role_units, find_units, find_weights
from tempbalance.spectra.windows import Windows
from tempbalance.tail import Hill, TailEstimator, find_estimator

__all__ = ["Every", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Every:
    """How often alphas are measured: at most ``steps`` optimizer steps and at most ``epochs`` epochs apart.

    Attributes:
        steps: Optimizer steps between two measurements; None for no limit.
        epochs: Epochs between two measurements (1 for once per epoch, 0.1 for ten times); None for no limit. Needs
            ``steps_per_epoch``.

    Raises:
        ArgumentError: There is no limit, or one is not positive and finite.

    Example:
        >>> Every(steps=100, epochs=0.1).interval(steps_per_epoch=128)
        12
    """

    steps: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.steps, self.epochs) if limit is not None]
        if self.steps is not None:
            check_integer("steps", self.steps, 1)
        if self.epochs is not None:
            check_numbers(epochs=self.epochs)
        if not limits or not all(0 < limit < math.inf for limit in limits):
            raise ArgumentError(f"how often to measure must be given by positive steps or epochs, got {self}")

    def interval(self, steps_per_epoch: int | None) -> int | None:
        """Return the optimizer steps between two measurements, at least 1; None if the length of an epoch is needed."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None and steps_per_epoch is not None:
            limits.append(max(1, math.floor(min(self.epochs * steps_per_epoch, _NEVER))))
        return min(limits) if limits else None

    def is_due(self, steps: int, interval: int) -> bool:
        """Return whether to measure ``steps`` optimizer steps after the first measurement; a subclass may override."""
        return steps % interval == 0


_NEVER = 2**63  # steps
_HILL, _ALL, _OFTEN = Hill(), Select(), Every(steps=100)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A balancing method; ``tempbalance.recipes`` contains those of the papers.

    Attributes:
        name: Name of the method.
        source: The paper or code that it follows.
        deviations: Differences from the source, one sentence each.
        assignment: Maps alphas (and depths) of all units to multipliers.
        target: Option that is multiplied: the learning rate, the weight decay, or both. (AdamW multiplies the weight
            decay by the learning rate, so its effective decay follows the learning rate in any case.)
        unit: ``"layer"``: one multiplier per layer. ``"block"``: one per block, by the mean alpha of its layers.
            ``"role"``: one for all layers of one role (all query projections, ...), by their mean alpha; norms keep the
            base value. (Depth is counted in blocks in each case.)
        spectrum_of: ``"weights"``: alpha of the weights. ``"update"``: alpha of their change since the first step; an
            update of zero has no alpha. This keeps one copy of the measured weights in the optimizer's state.
        estimator: Estimator of alpha, or its name (``"ks"``), which is replaced by the estimator.
        windows: ``FARMS()`` makes alpha independent of the shape of a layer; None measures full matrices.
        select: Weights to measure; all others keep the base value.
        kinds: Kinds of weights that are measured (``linear``, ``conv2d``, ``spectral_conv``, ...); None for all.
        first: Whether the first layer of the model, after its embeddings, is measured.
        last: Whether the last layer of the model is measured.
        norms: ``"follow"``: a norm gets the multiplier of the layer before it. ``"base"``: norms keep the base value.
            With ``unit="block"``, ``"follow"`` gives a norm the multiplier of its block.
        embeddings_and_head_at_max: Whether embeddings and the last layer get the alpha of the unit with the largest
            alpha, without being measured.
        every: How often alphas are measured.
        start: Optimizer step of the first measurement; before it all multipliers are 1.
        ramp: Optimizer steps in which a multiplier moves linearly to its new value.
        unfreeze: How often the next block is unfrozen, from the head to the embeddings. A frozen block gets no gradient
            and the optimizer does not change it. None trains all blocks from the start.
        tolerance: A weight is measured again only if its alpha can have changed by more than this since it was last
            measured; 0 measures every weight at every refresh.

    Raises:
        ArgumentError: An option is out of range.
        ArgumentTypeError: An option has the wrong type.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> recipe = Recipe(name="mine", assignment=Linear(0.8, 1.2), every=Every(steps=50))
        >>> recipe.unit, recipe.target
        ('layer', 'lr')
    """

    effect_after: ClassVar[int] = 0
    """Optimizer steps from a measurement without ``delay`` to its effect; a subclass may override it."""

    name: str
    source: str = ""
    deviations: tuple[str, ...] = ()
    assignment: Assignment
    target: Literal["lr", "weight_decay", "both"] = "lr"
    unit: Literal["layer", "block", "role"] = "layer"
    spectrum_of: Literal["weights", "update"] = "weights"
    estimator: TailEstimator | str | None = _HILL
    windows: Windows | None = None
    select: Select = _ALL
    kinds: tuple[str, ...] | None = None
    first: bool = True
    last: bool = True
    norms: Literal["follow", "base"] = "follow"
    embeddings_and_head_at_max: bool = False
    every: Every = _OFTEN
    start: int = 0
    ramp: int = 0
    unfreeze: Every | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        types = {"assignment": Assignment, "select": Select, "every": Every, "windows": Windows, "unfreeze": Every}
        for name, expected in types.items():
            value = getattr(self, name)
            optional = name in {"windows", "unfreeze"}
            if not (isinstance(value, expected) or (optional and value is None)):
                or_none = " or None" if optional else ""
                raise ArgumentTypeError(f"{name} must be of type {expected.__name__}{or_none}, got {value!r}")
        object.__setattr__(self, "estimator", find_estimator(self.estimator))
        choices = {
            "target": (self.target, ("lr", "weight_decay", "both")),
            "unit": (self.unit, ("layer", "block", "role")),
            "spectrum_of": (self.spectrum_of, ("weights", "update")),
            "norms": (self.norms, ("follow", "base")),
        }
        for name, (value, allowed) in choices.items():
            check_type(name, value, str)
            if value not in allowed:
                raise ArgumentError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        kinds: object = () if self.kinds is None else self.kinds
        if not isinstance(kinds, Collection) or isinstance(kinds, str) or any(kind not in KINDS for kind in kinds):
            raise ArgumentError(f"kinds must be None or a tuple of {', '.join(KINDS)}; got {self.kinds!r}")
        check_integer("start", self.start, 0)
        check_integer("ramp", self.ramp, 0)
        check_numbers(tolerance=self.tolerance)
        if not self.tolerance >= 0:
            raise ArgumentError(f"tolerance must be 0 or more, got {self.tolerance}")

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the options of a parameter group that are multiplied."""
        return ("lr", "weight_decay") if self.target == "both" else (self.target,)

    def find_units(self, model: nn.Module, weights: Sequence[Weight]) -> list[Unit]:
        """Divide the parameters of a model into units; a subclass may override it.

        Args:
            model: The live model.
            weights: The weights that are measured.

        Returns:
            The units, each with at least one weight. A parameter is in at most one unit.
        """
        if self.unit == "role":
            everything, _ = find_weights(model, Select(embeddings=True), sharded=True)
            return find_role_units(model, weights, everything)
        return find_units(model, weights, unit=self.unit, norms=self.norms)
