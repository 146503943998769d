"""What a balancing method is made of: a frozen value that says what is measured, how it is mapped, what it changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tempbalance.balance.assign import Assignment
from tempbalance.layers import KINDS, Select
from tempbalance.spectra.windows import Windows
from tempbalance.tail import Hill, TailEstimator

__all__ = ["Every", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Every:
    """How often alphas are measured: at most ``steps`` optimizer steps and at most ``epochs`` of an epoch apart.

    Attributes:
        steps: Optimizer steps between two measurements, None for no limit.
        epochs: Share of an epoch between two measurements (1 for once per epoch), None for no limit. It needs to know
            ``steps_per_epoch``.
        early: How many steps earlier than at multiples of the interval the later measurements come (the code released
            with AlphaDecay measures before step 499, not 500).

    Example:
        >>> Every(steps=100, epochs=0.1).interval(steps_per_epoch=128)
        12
    """

    steps: int | None = None
    epochs: float | None = None
    early: int = 0

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: No limit at all, or one that is not positive.
        """
        limits = [limit for limit in (self.steps, self.epochs) if limit is not None]
        if not limits or min(limits) <= 0 or self.early < 0:
            raise ValueError(f"how often to measure must be given by positive steps or epochs, got {self}")

    def interval(self, steps_per_epoch: int | None) -> int | None:
        """Optimizer steps from one measurement to the next, at least 1; None if that depends on an unknown epoch."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None and steps_per_epoch is not None:
            limits.append(max(1, math.floor(self.epochs * steps_per_epoch)))
        return min(limits) if limits else None


_HILL, _ALL, _OFTEN = Hill(), Select(), Every(steps=100)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way of balancing; ``tempbalance.recipes`` has those of the papers.

    Attributes:
        name: What it is called.
        source: The paper or code it follows.
        deviations: Where it departs from that source, a sentence each.
        assignment: From what is known of all units, such as their alphas, to their multipliers.
        target: What is multiplied: the learning rate, the weight decay, or both. (The decay of AdamW is a multiple of
            the learning rate and follows it in any case.)
        unit: Whether each layer gets its own multiplier, or each block, by the mean alpha of its layers. (Depths are
            counted in blocks in any case.)
        spectrum_of: Whether alpha is that of the weights, or that of the update: their change since the first step. An
            update of zero is not judged. Costs one copy of the judged weights, kept in the optimizer's state.
        estimator: How alpha is fitted.
        windows: ``FARMS()`` frees alpha of the shape of a layer; None measures matrices whole.
        select: Which weights are judged; the others keep the base value.
        kinds: Kinds of weights that are judged (``linear``, ``conv2d``, ``spectral_conv``, ...); None for all.
        first: Whether the first weight matrix of the model is judged.
        last: Whether the last one is.
        norms: Whether a norm follows the layer before it (``"follow"``), only the convolution of the same name
            (``"by_name"``: ``bn1`` and ``conv1``), or keeps the base value (``"base"``). In a block everything follows.
        lightest: Whether embeddings and the last layer count as having the largest alpha of all, unmeasured.
        every: How often alphas are measured.
        start: Optimizer step from which on to balance; before it all multipliers are 1.
        ramp: Optimizer steps in which a multiplier moves, in a straight line, to its new value.
        delay: Whether a measurement takes effect one step late; a delay of the balancer goes before it.
        unfreeze: How often the next block is freed, from the head to the embeddings: until its turn no gradient is
            computed, and the optimizer leaves it alone. None trains everything from the start.
        tolerance: A weight is measured again only once its alpha can have moved by more than this since it was last
            measured; 0 measures every weight at every refresh.

    Example:
        >>> from tempbalance.balance.assign import Linear
        >>> recipe = Recipe(name="mine", assignment=Linear(0.8, 1.2), every=Every(steps=50))
        >>> recipe.unit, recipe.target
        ('layer', 'lr')
    """

    name: str
    source: str = ""
    deviations: tuple[str, ...] = ()
    assignment: Assignment
    target: Literal["lr", "weight_decay", "both"] = "lr"
    unit: Literal["layer", "block"] = "layer"
    spectrum_of: Literal["weights", "update"] = "weights"
    estimator: TailEstimator = _HILL
    windows: Windows | None = None
    select: Select = _ALL
    kinds: tuple[str, ...] | None = None
    first: bool = True
    last: bool = True
    norms: Literal["follow", "by_name", "base"] = "follow"
    lightest: bool = False
    every: Every = _OFTEN
    start: int = 0
    ramp: int = 0
    delay: bool = False
    unfreeze: Every | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of range.
        """
        choices = {
            "target": (self.target, ("lr", "weight_decay", "both")),
            "unit": (self.unit, ("layer", "block")),
            "spectrum_of": (self.spectrum_of, ("weights", "update")),
            "norms": (self.norms, ("follow", "by_name", "base")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if isinstance(self.kinds, str) or not set(self.kinds or ()) <= set(KINDS):
            raise ValueError(f"kinds must be None or a tuple of {', '.join(KINDS)}; got {self.kinds!r}")
        if min(self.start, self.ramp, self.tolerance) < 0:
            raise ValueError("start, ramp and tolerance cannot be negative")

    @property
    def keys(self) -> tuple[str, ...]:
        """The options of a parameter group that are multiplied."""
        return ("lr", "weight_decay") if self.target == "both" else (self.target,)
