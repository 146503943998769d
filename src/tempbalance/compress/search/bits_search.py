"""Search an allocation of number formats on calibration text."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.analysis.analyzer import analyze
from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.bits import allocate_bits, find_offers
from tempbalance.compress.budget_units import find_units, make_allocation, values_of_layers
from tempbalance.compress.evaluation.causal_lm import load_causal_lm, transformers_bars
from tempbalance.compress.evaluation.fake_quantization import check_rounds, match_weights, oriented
from tempbalance.compress.evaluation.tokens import Documents, read_documents
from tempbalance.compress.format_errors import quantization_errors
from tempbalance.compress.formats import WeightFormat, find_format
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.compress.search.announcement import Announcement
from tempbalance.compress.search.evolution import SearchSettings, Space, Units, evolve, levels_under
from tempbalance.compress.search.text_scores import TextScores, text_scores
from tempbalance.compress.search.varied_model import VariedModel
from tempbalance.errors import AllocationError, check_numbers, check_type
from tempbalance.layers import unwrapped

__all__ = ["search_bits"]

_logger = logging.getLogger("tempbalance")

_MEASURED = 7  # allocations, each on the whole text
_PART = 1 / 8  # of the text, for the divergence of each layer alone
_LARGEST = 1e30  # instead of infinity, where a format makes outputs that are not finite


def search_bits(  # noqa: PLR0913  most are keyword options
    model: nn.Module | str | os.PathLike[str],
    bits: float,
    calibration: Documents,
    formats: Sequence[str],
    settings: SearchSettings | None = None,
    *,
    unit: Literal["layer", "block"] = "layer",
    analysis: Analysis | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Allocation:
    """Search the number formats with which a quantized model is closest to the model itself on calibration text.

    The search of ``search_sparsity``, in the manner of EvoPress (Sieberling et al. 2024, arXiv 2410.14649), with number
    formats as levels. It starts from the best allocation of ``allocate_bits``: uniform, by alpha, by the errors of the
    weights, or by the divergence of each layer alone in each format, on an eighth of the text. In a child up to three
    units have the next larger format, and as many others the next smaller one as the budget takes. Weights are rounded
    to nearest in the format, scales included; GPTQ, AWQ and AutoRound round better.

    Args:
        model: A Hugging Face causal language model, whose weights are as before at the end, or the folder or hub id of
            one.
        bits: Mean bits per weight, scales included; the allocation costs at most that.
        calibration: Token ids, as for ``prune``.
        formats: Names of formats, see ``find_format``.
        settings: Length and seed of the search, and the folder in which it can be resumed.
        unit: Whether each layer has its own format, or the layers of a block share one.
        analysis: An analysis of the model, for its alphas; by default it is analysed.
        device: Device of a model that is loaded from a folder; by default the CPU.
        progress: Whether to show the expected time and a progress bar with the gain (on a terminal only).

    Returns:
        The allocation, with the divergence and the perplexity of each method in ``compared``.

    Raises:
        AllocationError: There is nothing to quantize, a format is unknown, none fits a layer, the budget is below the
            cheapest formats, the memory does not suffice, or the folder has the state of another search.
        TokensError: The calibration set is empty, has ids outside the vocabulary, or the model is no causal language
            model.
        CheckpointError: The folder or hub id is not a causal language model.

    Example:
        >>> import torch, transformers
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> tokens = [torch.randint(50, (20,)) for _ in range(4)]
        >>> allocation = search_bits(model, 5, tokens, ["int2_g32", "int4_g32"], SearchSettings(generations=2))
        >>> sum(layer.bits * layer.numel for layer in allocation.layers) <= 5 * allocation.covered
        True
    """
    settings = settings or SearchSettings()
    check_type("settings", settings, SearchSettings)
    check_type("formats", formats, Sequence)
    check_numbers(bits=bits)
    if isinstance(formats, str) or not formats:
        raise AllocationError(f"formats must be several names, such as ('int3_g128', 'int4_g128'), got {formats!r}")
    chosen = {name: find_format(name) for name in formats}
    sequences = read_documents(calibration, None if isinstance(model, nn.Module) else model)
    if not isinstance(model, nn.Module):
        with transformers_bars(progress):
            model = load_causal_lm(model, device)
    if analysis is None:
        analysis = analyze(model, progress=progress)
    allocate = functools.partial(allocate_bits, analysis, bits, widths=tuple(chosen), unit=unit)
    simple = _simple_allocations(allocate, quantization_errors(model, chosen, progress=progress))
    space = _FormatSpace(analysis, unit, [*chosen.values()])
    vary = functools.partial(_rounded_model, model, space.layers, space.formats)
    announce = Announcement(
        model=model,
        settings=settings,
        measured=_MEASURED + math.ceil(_PART * sum(map(len, space.formats))),
        weights=sum(layer.numel for layer in space.layers),
        progress=progress,
    )
    with text_scores(model, sequences, vary, tokens=settings.tokens, announce=announce) as scores:
        simple["error on text"] = allocate(method="error", errors=_divergences(scores, space, progress))
        starts = {name: space.levels_in(allocation) for name, allocation in simple.items()}
        scored = {name: scores.score(name, space.spread(levels)) for name, levels in starts.items()}
        best = min(scored, key=lambda name: (scored[name].kl, name))
        with progress_bar("search", settings.generations, progress) as advance:
            found = evolve(
                starts[best],
                space.within(bits),
                settings,
                lambda levels, numbers: scores.of_batches(space.spread(levels), numbers),
                identity={"budget": bits, "formats": ", ".join(chosen), "unit": unit, **scores.identity(sequences)},
                advance=advance,
            )
        scored["search"] = scores.score("search", space.spread(found))
    names = [own[level - 1] for own, level in zip(space.formats, space.spread(found), strict=True)]
    return make_allocation(
        analysis,
        [replace(layer, format=one.name) for layer, one in zip(space.layers, names, strict=True)],
        [one.cost(layer.shape) / layer.numel for layer, one in zip(space.layers, names, strict=True)],
        "bits",
        budget=bits,
        method=f"search, {settings.generations} generations from {best}, seed {settings.seed}, formats {[*chosen]}",
        unit=unit,
        compared=tuple(sorted(scored.values(), key=lambda score: (score.kl, score.method))),
        estimate=announce.text,
    )


class _FormatSpace:
    """The layers, and the formats that each unit can have, the cheapest first."""

    def __init__(self, analysis: Analysis, unit: Literal["layer", "block"], formats: Sequence[WeightFormat]) -> None:
        self.layers, self.units = find_units(analysis, unit, {"linear", "experts"})
        self._offers = [
            sorted(own, key=lambda each: (each.cost, each.format.name))
            for own in find_offers(self.units, formats, "uniform", 1.0, {})
        ]
        owners = dict(zip((each.name for each in self.units), self._offers, strict=True))
        self.formats = [[offer.format for offer in owners[layer.unit]] for layer in self.layers]  # of each layer

    def within(self, bits: float) -> Space:
        budget = math.floor(bits * sum(each.numel for each in self.units) * (1 + 1e-12))
        return levels_under([[offer.cost for offer in own] for own in self._offers], budget)

    def levels_in(self, allocation: Allocation) -> Units:
        """Return the levels of the units in an allocation of these formats."""
        given = {layer.unit: layer.format for layer in allocation.layers}
        return tuple(
            [offer.format.name for offer in own].index(given[each.name])
            for each, own in zip(self.units, self._offers, strict=True)
        )

    def spread(self, levels: Units) -> list[int]:
        """Return the levels of the layers, where 0 is a weight that is not rounded."""
        return [level + 1 for level in values_of_layers(self.layers, self.units, levels)]


def _divergences(scores: TextScores, space: _FormatSpace, progress: bool) -> dict[str, dict[str, float]]:
    """Return the divergence on a part of the text if one layer alone has one of its formats."""
    batches = range(max(1, round(_PART * len(scores.dense))))
    found: dict[str, dict[str, float]] = {}
    with progress_bar("measuring layers", len(space.layers), progress) as advance:
        for place, (layer, own) in enumerate(zip(space.layers, space.formats, strict=True)):
            for level, one in enumerate(own, 1):
                levels = [0] * len(space.layers)
                levels[place] = level
                divergence = sum(scores.of_batches(levels, batches))
                found.setdefault(layer.name, {})[one.name] = min(max(0.0, divergence), _LARGEST)
            advance(1)
    return found


def _simple_allocations(
    allocate: Callable[..., Allocation], errors: Mapping[str, Mapping[str, float]]
) -> dict[str, Allocation]:
    """Return the allocations without text that a search can start from."""
    found = {"error": allocate(method="error", errors=errors), "alpha": allocate(method="alpha")}
    try:
        found["uniform"] = allocate(method="uniform")
    except AllocationError as error:
        _logger.info("uniform is left out: %s", error)
    return found


def _rounded_model(
    model: nn.Module, layers: Sequence[LayerAllocation], formats: Sequence[Sequence[WeightFormat]]
) -> VariedModel:
    """Return a model whose layers can have each of their formats."""
    root = unwrapped(model)
    weights = match_weights(root, layers)
    for layer, weight, own in zip(layers, weights, formats, strict=True):
        for one in own:
            check_rounds(replace(layer, format=one.name), weight, one)

    def rounded(place: int, dense: Tensor, level: int) -> Tensor:
        weight = weights[place]
        return oriented(weight, formats[place][level - 1].round(oriented(weight, dense)))

    return VariedModel(root, weights, rounded)
