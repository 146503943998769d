"""What each simple allocation of sparsity gives on calibration text."""

from __future__ import annotations

import functools
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from tempbalance.analysis.analyzer import analyze
from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget_units import make_allocation
from tempbalance.compress.evaluation.tokens import Documents, read_documents
from tempbalance.compress.layer_allocation import MethodScore
from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruner import Criterion, check_criterion
from tempbalance.compress.search.announcement import Announcement
from tempbalance.compress.search.evolution import SearchSettings
from tempbalance.compress.search.masked_model import MaskedModel
from tempbalance.compress.search.text_scores import TextScores, text_scores
from tempbalance.compress.sparsity import AllocatedZeros, allocate_zeros, check_parameters
from tempbalance.compress.sparsity_methods import largest_beta
from tempbalance.errors import AllocationError, TempBalanceError, check_type

__all__ = [
    "SimpleMethods",
    "announcement",
    "compare_methods",
    "measure_methods",
    "measure_sparsity",
    "read_inputs",
    "score_allocations",
    "uniform_allocation",
]

_logger = logging.getLogger("tempbalance")

_TOKENS = SearchSettings().tokens
_BETAS = 10  # evenly spaced up to the largest
_BY_LAYER = 3  # uniform, ERK and AlphaPruning
_MEASURED = _BY_LAYER + 1 + _BETAS  # with OWL, and ATP with each beta


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleMethods:
    """The simple methods by name, with what each gives on the text."""

    allocated: dict[str, AllocatedZeros] = field(default_factory=dict)
    scores: dict[str, MethodScore] = field(default_factory=dict)

    def best(self, unit: Literal["layer", "block"]) -> AllocatedZeros:
        """Return the zeros with the smallest divergence among those that have these units."""
        names = [name for name in self.scores if unit == "layer" or name != "erk"]
        return self.allocated[min(names, key=lambda name: self.scores[name].kl)]  # of equal ones the first: uniform

    @property
    def ranked(self) -> dict[str, MethodScore]:
        """The scores, the best first."""
        return dict(sorted(self.scores.items(), key=lambda item: item[1].kl))


def uniform_allocation(analysis: Analysis, sparsity: float, routers: bool) -> Allocation:
    """Return the same sparsity for every layer that the methods allocate to."""
    given = allocate_zeros(analysis, sparsity, unit="layer", method="uniform", routers=routers)
    head: dict[str, Any] = {"budget": sparsity, "method": given.method, "unit": "layer"}
    return make_allocation(analysis, given.layers, given.zeros, "sparsity", given.left_out, **head)


def measure_methods(  # noqa: PLR0913  four parameters, and options by keyword
    scores: TextScores,
    analysis: Analysis,
    sparsity: float,
    sequences: Sequence[Tensor],
    *,
    routers: bool,
    progress: bool,
    unit: Literal["layer", "block"] | None = None,
) -> SimpleMethods:
    """Measure the simple methods on the text, by default each with its own unit; of ATP the best beta."""
    found = SimpleMethods()
    scores.varied.restore()
    outliers = {} if unit == "layer" else _outliers(scores.varied.model, sequences, progress)
    for given in _each_method(analysis, sparsity, outliers, routers, unit):
        name = given.method.partition(",")[0]
        score = scores.score(given.method, given.zeros)
        if name not in found.scores or score.kl < found.scores[name].kl:
            found.allocated[name], found.scores[name] = given, score
    return found


def compare_methods(  # noqa: PLR0913  four parameters, and options by keyword
    model: nn.Module,
    allocation: Allocation,
    sequences: Sequence[Tensor],
    criterion: Criterion,
    *,
    analysis: Analysis,
    routers: bool,
    progress: bool,
) -> Allocation:
    """Return an allocation with what it and the simple methods give on the text; without, where that fails."""
    vary = functools.partial(MaskedModel, model, _even([allocation]), criterion, sequences, progress)
    settings = SearchSettings()
    search = announcement(model, sequences, allocation, criterion, settings, progress=progress, alone=(_MEASURED, True))
    try:
        with text_scores(model, sequences, vary, tokens=settings.tokens, announce=search) as scores:
            own = scores.score(allocation.method, [layer.zeros for layer in allocation.layers])
            budget = allocation.budget
            found = measure_methods(scores, analysis, budget, sequences, routers=routers, progress=progress)
    except TempBalanceError as error:  # no head for the next token, or a weight that the criterion cannot prune
        _logger.warning("the simple methods are not compared on the calibration text: %s", error)
        return allocation
    compared = {score.method: score for score in (*found.scores.values(), own)}
    ranked = tuple(sorted(compared.values(), key=lambda score: score.kl))
    return replace(allocation, compared=ranked, criterion=criterion, estimate=search.text)


def measure_sparsity(  # noqa: PLR0913  most are keyword options
    model: nn.Module,
    sparsity: float,
    calibration: Documents,
    criterion: Criterion = "magnitude",
    *,
    tokens: int = _TOKENS,
    unit: Literal["layer", "block"] | None = None,
    analysis: Analysis | None = None,
    routers: bool = False,
    progress: bool = True,
) -> dict[str, Allocation]:
    """Measure what each simple method of allocation gives on calibration text, without pruning the model.

    The methods are uniform, ERK, OWL, ATP and AlphaPruning, with their default parameters. The beta of ATP is the best
    of ten up to the largest.

    Args:
        model: A Hugging Face causal language model; its weights are as before at the end.
        sparsity: Fraction of zeros among all weights that are pruned, in [0, 1).
        calibration: Token ids, as for ``prune``.
        criterion: Pruning criterion; for SparseGPT the scores of Wanda are used (see ``search_sparsity``).
        tokens: Number of tokens of the text that are used.
        unit: What has one sparsity: each layer (uniform, ERK and AlphaPruning) or each block (all but ERK); by default
            the layers of ERK, and the blocks of the others.
        analysis: An analysis of the model, for AlphaPruning; by default it is analysed.
        routers: Whether routers of experts are pruned too.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The allocation of each method by its name, the best first, with the divergence and the perplexity of all methods
        in ``compared``, and what a search would take in ``estimate``.

    Raises:
        AllocationError: There is nothing to prune, the criterion cannot prune one of the weights, or the memory does
            not suffice.
        ArgumentError: ``tokens`` is below 2.
        TokensError: The calibration set is empty, has ids outside the vocabulary, or the model is no causal language
            model.

    Example:
        >>> import torch, transformers
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> found = measure_sparsity(model, 0.5, [torch.randint(50, (20,)) for _ in range(4)])
        >>> sorted(found)
        ['alpha', 'atp', 'erk', 'owl', 'uniform']
    """
    check_parameters(sparsity, None, "search")
    analysis, sequences = read_inputs(model, calibration, criterion, analysis, progress)
    target = uniform_allocation(analysis, sparsity, routers)
    vary = functools.partial(MaskedModel, model, target, criterion, sequences, progress)
    settings = SearchSettings(tokens=tokens)
    alone = (_BY_LAYER, False) if unit == "layer" else (_MEASURED, True)
    search = announcement(model, sequences, target, criterion, settings, progress=progress, alone=alone)
    with text_scores(model, sequences, vary, tokens=tokens, announce=search) as scores:
        methods = measure_methods(scores, analysis, sparsity, sequences, routers=routers, progress=progress, unit=unit)
    return {
        name: make_allocation(
            analysis,
            (given := methods.allocated[name]).layers,
            given.zeros,
            "sparsity",
            given.left_out,
            budget=sparsity,
            method=given.method,
            unit="layer" if name == "erk" else unit or "block",
            compared=tuple(methods.ranked.values()),
            criterion=criterion,
            estimate=search.text,
            quiet=True,
        )
        for name in methods.ranked
    }


def score_allocations(
    model: nn.Module,
    allocations: Mapping[str, Allocation],
    calibration: Documents,
    criterion: Criterion = "magnitude",
    *,
    tokens: int = _TOKENS,
    progress: bool = True,
) -> dict[str, MethodScore]:
    """Measure what given allocations of sparsity give on calibration text, without pruning the model.

    Args:
        model: A Hugging Face causal language model; its weights are as before at the end.
        allocations: Allocations of sparsity for the same weights of this model, by any names.
        calibration: Token ids, as for ``prune``.
        criterion: Pruning criterion; for SparseGPT the scores of Wanda are used (see ``search_sparsity``).
        tokens: Number of tokens of the text that are used.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The divergence and the perplexity of each, by name.

    Raises:
        AllocationError: There is no allocation, one is of bits or ranks, of N:M sparsity, or for another model.
        TokensError: The calibration set is empty, has ids outside the vocabulary, or the model is no causal language
            model.

    Example:
        >>> import tempbalance as tb, torch, transformers
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> half = tb.allocate_sparsity(tb.analyze(model), 0.5)
        >>> score_allocations(model, {"half": half}, [torch.randint(50, (20,))])["half"].kl > 0
        True
    """
    check_type("model", model, nn.Module)
    check_criterion(criterion)
    sequences = read_documents(calibration)
    first = next(iter(allocations.values()), None)
    if first is None:
        raise AllocationError("there is no allocation to measure")
    for allocation in allocations.values():
        allocation.check_quantity("sparsity")
        if allocation.group is not None or list(allocation) != list(first):
            raise AllocationError("the allocations must be unstructured, and for the same weights in the same order")
    vary = functools.partial(MaskedModel, model, _even([*allocations.values()]), criterion, sequences, progress)
    with text_scores(model, sequences, vary, tokens=tokens) as scores:
        return {
            name: scores.score(allocation.method, [layer.zeros for layer in allocation.layers])
            for name, allocation in allocations.items()
        }


def _even(allocations: Sequence[Allocation]) -> Allocation:
    """Return an allocation of the mean sparsity to every layer; of its pruned blocks the inputs are measured."""
    layers = [layer for allocation in allocations for layer in allocation.layers]
    mean = sum(layer.zeros for layer in layers) / sum(layer.numel for layer in layers)
    even = tuple(replace(layer, zeros=round(mean * layer.numel)) for layer in allocations[0].layers)
    return replace(allocations[0], layers=even)


def read_inputs(
    model: nn.Module, calibration: Documents, criterion: Criterion, analysis: Analysis | None, progress: bool
) -> tuple[Analysis, list[Tensor]]:
    """Return the analysis of the model, by default a new one, and the calibration sequences."""
    check_type("model", model, nn.Module)
    check_criterion(criterion)
    sequences = read_documents(calibration)
    if analysis is None:
        analysis = analyze(model, progress=progress)
    check_type("analysis", analysis, Analysis)
    return analysis, sequences


def announcement(  # noqa: PLR0913  five parameters, and options by keyword
    model: nn.Module,
    sequences: Sequence[Tensor],
    allocation: Allocation,
    criterion: Criterion,
    settings: SearchSettings,
    *,
    progress: bool,
    alone: tuple[int, bool] | None = None,
) -> Announcement:
    """Return what shows how long a search with these settings takes, or ``alone`` the simple methods before it."""
    return Announcement(
        model=model,
        settings=settings,
        measured=_MEASURED,
        weights=allocation.covered,
        calibration=sequences,
        criterion=criterion,
        progress=progress,
        alone=alone,
    )


def _outliers(model: nn.Module, sequences: Sequence[Tensor], progress: bool) -> dict[str, float]:
    """Return the outlier ratios of the blocks; none, with a line in the log, where OWL is not defined."""
    try:
        return outlier_ratios(model, sequences, progress=progress)
    except AllocationError as error:
        _logger.info("owl is left out: %s", error)
        return {}


def _each_method(
    analysis: Analysis,
    sparsity: float,
    outliers: Mapping[str, float],
    routers: bool,
    unit: Literal["layer", "block"] | None,
) -> Generator[AllocatedZeros]:
    """Yield the zeros of every simple method that can have the unit, and of ATP one for each beta."""
    allocate = functools.partial(allocate_zeros, analysis, sparsity, routers=routers)
    uniform = allocate(unit=unit or "block", method="uniform")
    yield uniform
    if unit != "block":
        yield allocate(unit="layer", method="erk")
    yield allocate(unit=unit or "block", method="alpha")
    if unit == "layer":  # OWL and ATP are defined for blocks
        return
    if outliers:
        yield allocate(unit="block", method="owl", outliers=outliers)
    blocks = len({layer.unit for layer in uniform.layers})
    exact = sum(uniform.zeros) / sum(layer.numel for layer in uniform.layers)  # to one weight
    largest = largest_beta(exact, blocks) if blocks > 1 else 0.0
    for step in range(1, _BETAS + 1):
        if beta := float(f"{largest * step / _BETAS:.4g}"):
            yield allocate(unit="block", method="atp", beta=min(beta, largest))
