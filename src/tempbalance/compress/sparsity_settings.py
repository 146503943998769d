"""How sparsity is allocated over the layers of a model: the settings of the workflows, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.tokens import Calibration
from tempbalance.compress.search.evolution import SearchSettings
from tempbalance.compress.sparsity import check_parameters
from tempbalance.compress.sparsity_methods import SparsityMethod
from tempbalance.errors import AllocationError, check_type
from tempbalance.spectra import Windows
from tempbalance.tail import TailEstimator, find_estimator

__all__ = ["SparsitySettings", "fallback_for", "with_method"]

_OWNERS = {  # of a parameter
    "epsilon": "method='owl', 'alpha' or 'depth' (--allocation)",
    "beta": "method='atp' (--allocation)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsitySettings:
    """How ``prune_folder`` allocates sparsity over the layers of a model.

    Attributes:
        sparsity: Fraction of zeros among all weights that are pruned, in [0, 1).
        method: Allocation method, see ``allocate_sparsity``. ``"best"`` is the best of the simple methods (uniform,
            ERK, OWL, ATP and AlphaPruning, with their default parameters) on the calibration text. It is the default
            with calibration text; ``"owl"`` is with ``group`` or without ``compare``, or where nothing can be measured
            on the text (with ``unit="layer"`` it is ``"uniform"``). ``"uniform"`` is the default without text.
            ``"search"``, ``"best"``, and ``"atp"`` without ``beta`` use the calibration text.
        epsilon: Allowed spread around the mean sparsity; by default 0.3, for ``"owl"`` 0.08. Only ``"alpha"``,
            ``"depth"`` and ``"owl"`` have one.
        beta: Difference in sparsity between consecutive blocks, for ``"atp"``; by default the best of ten on the
            calibration text.
        unit: Whether the weights of a block share a sparsity or each weight has its own; by default ``"layer"`` for
            ``"search"``, else ``"block"``. ``"best"`` compares methods of both kinds; with ``"layer"`` uniform, ERK and
            AlphaPruning, with ``"block"`` all but ERK.
        search: Length, seed and folder of the search, for ``"search"``.
        compare: Whether the allocation and the simple methods are measured on the calibration text, if it is used:
            some 15 passes over 4,096 tokens, three or six over the whole text, and a copy of the weights.
            ``"search"``, ``"best"`` and ``"atp"`` measure them in any case.
        group: M of N:M sparsity; None for unstructured sparsity.
        routers: Whether routers of experts are pruned too.
        estimator: Tail estimator of the analysis, or its name.
        windows: FARMS windows of the analysis; None for whole matrices.

    Raises:
        AllocationError: A parameter is out of range.
        SelectionError: There is no such estimator.
    """

    sparsity: float
    method: SparsityMethod | None = None
    epsilon: float | None = None
    beta: float | None = None
    unit: Literal["layer", "block"] | None = None
    search: SearchSettings | None = None
    compare: bool = True
    group: int | None = None
    routers: bool = False
    estimator: TailEstimator | str = "hill"
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if self.method is None:
            check_parameters(self.sparsity, None, "uniform")
            for name, value in {"epsilon": self.epsilon, "beta": self.beta}.items():
                if value is not None:
                    raise AllocationError(f"{name} has no effect without a method that has one: choose {_OWNERS[name]}")
        else:
            check_parameters(self.sparsity, self.epsilon, self.method, self.beta)
        if self.unit not in {None, "layer", "block"}:
            raise AllocationError(f"unit must be 'layer' or 'block', got {self.unit!r}")
        if self.unit == "layer" and self.method in {"owl", "atp"}:
            raise AllocationError(
                f"method {self.method!r} gives each block one sparsity: leave out unit, or give 'block'"
            )
        check_type("search", self.search or SearchSettings(), SearchSettings)
        if self.search is not None and self.method != "search":
            raise AllocationError("settings of the search have no effect without method='search' (--allocation search)")
        if self.measured and self.group is not None:
            hint = ", or give beta" if self.method == "atp" else ""
            raise AllocationError(f"method {self.method!r} needs unstructured sparsity: leave out group{hint}")
        find_estimator(self.estimator)

    @property
    def measured(self) -> bool:
        """Whether the method measures allocations on the calibration text."""
        return self.method in {"search", "best"} or (self.method == "atp" and self.beta is None)

    @property
    def calibrated(self) -> bool:
        """Whether the method uses the calibration text."""
        return self.measured or self.method == "owl"


def with_method(allocation: float | SparsitySettings, calibration: Calibration | None) -> SparsitySettings:
    """Return settings with the default allocation method."""
    settings = _settings(allocation)
    if settings.method is not None:
        return settings
    if calibration is None:
        return replace(settings, method="uniform")
    return replace(settings, method="best" if settings.compare and settings.group is None else _not_measured(settings))


def fallback_for(allocation: float | SparsitySettings | Allocation) -> SparsitySettings | None:
    """Return what is done instead where a default cannot be measured on the text; None if it was not a default."""
    settings = None if isinstance(allocation, Allocation) else _settings(allocation)
    if settings is None or settings.method:
        return None
    return replace(settings, method=_not_measured(settings), compare=False)


def _not_measured(settings: SparsitySettings) -> SparsityMethod:
    """Return the default method where nothing is measured on the calibration text; OWL is defined for blocks."""
    return "uniform" if settings.unit == "layer" else "owl"


def _settings(allocation: float | SparsitySettings) -> SparsitySettings:
    return allocation if isinstance(allocation, SparsitySettings) else SparsitySettings(sparsity=allocation)
