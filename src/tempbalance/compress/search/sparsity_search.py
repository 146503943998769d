"""Search an allocation of sparsity on calibration text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from tempbalance._progress import progress_bar
from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget import apportion
from tempbalance.compress.budget_units import make_allocation
from tempbalance.compress.evaluation.tokens import Documents
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.compress.pruning.pruner import Criterion
from tempbalance.compress.search.evolution import SearchSettings, Units, evolve, zeros_of
from tempbalance.compress.search.masked_model import MaskedModel
from tempbalance.compress.search.simple_methods import announcement, measure_methods, read_inputs, uniform_allocation
from tempbalance.compress.search.text_scores import TextScores, text_scores
from tempbalance.compress.sparsity import check_parameters
from tempbalance.errors import AllocationError, check_type

__all__ = ["search_sparsity"]


def search_sparsity(  # noqa: PLR0913  most are keyword options
    model: nn.Module,
    sparsity: float,
    calibration: Documents,
    criterion: Criterion = "magnitude",
    settings: SearchSettings | None = None,
    *,
    unit: Literal["layer", "block"] = "layer",
    analysis: Analysis | None = None,
    routers: bool = False,
    progress: bool = True,
) -> Allocation:
    """Search the allocation of sparsity with which a model is closest to the dense one on calibration text.

    An evolutionary search in the manner of EvoPress (Sieberling et al. 2024, arXiv 2410.14649). It starts from the best
    of the simple methods (uniform, ERK, OWL, ATP, AlphaPruning). In each generation children move zeros between up to
    three pairs of units, the same number out of one as into the other, so the budget is always met exactly. Children
    are measured on more and more of the text, and the worst are dropped. The measure is the Kullback-Leibler divergence
    of the next-token distribution from that of the dense model. The best child replaces its parent if it is closer on
    the whole text.

    A child differs from its parent in few weights, and only these are pruned again, by scores of the dense model. With
    SparseGPT, which updates the remaining weights, the search uses the scores of Wanda: pruning by SparseGPT at every
    level is too slow, or takes a copy of the model for each level.

    Memory: the model, a copy of the weights that are pruned, at most 1 GiB of probabilities, the activations of one
    batch (a sixteenth of the text), and for OWL and Wanda the hidden states of all sequences. If copies of all weights
    need more than half of the available memory, those of a block are made when it runs, so that the memory is bounded.

    Args:
        model: A Hugging Face causal language model; its weights are as before at the end.
        sparsity: Fraction of zeros among all weights that are pruned, in [0, 1).
        calibration: Token ids, as for ``prune``.
        criterion: Pruning criterion that the allocation is for.
        settings: Length and seed of the search, and the folder in which it can be resumed.
        unit: Whether each weight has its own sparsity, or the weights of a block share one.
        analysis: An analysis of the model, for AlphaPruning; by default it is analysed.
        routers: Whether routers of experts are pruned too.
        progress: Whether to show the expected time and a progress bar with the gain (on a terminal only).

    Returns:
        The allocation, with the divergence and the perplexity of each method in ``compared``.

    Raises:
        AllocationError: There is nothing to prune, the criterion cannot prune one of the weights, the memory does not
            suffice, or the folder has the state of another search.
        TokensError: The calibration set is empty, has ids outside the vocabulary, or the model is no causal language
            model.

    Example:
        >>> import torch, transformers
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
        >>> tokens = [torch.randint(50, (20,)) for _ in range(4)]
        >>> allocation = search_sparsity(model, 0.5, tokens, settings=SearchSettings(generations=2))
        >>> sum(layer.zeros for layer in allocation.layers) == allocation.covered // 2
        True
    """
    settings = settings or SearchSettings()
    check_type("settings", settings, SearchSettings)
    check_parameters(sparsity, None, "search")
    if unit not in ("layer", "block"):
        raise AllocationError(f"unit must be 'layer' or 'block', got {unit!r}")
    analysis, sequences = read_inputs(model, calibration, criterion, analysis, progress)
    target = uniform_allocation(analysis, sparsity, routers)
    vary = functools.partial(MaskedModel, model, target, criterion, sequences, progress)
    announce = announcement(model, sequences, target, criterion, settings, progress=progress)
    with text_scores(model, sequences, vary, tokens=settings.tokens, announce=announce) as scores:
        methods = measure_methods(scores, analysis, sparsity, sequences, routers=routers, progress=progress)
        start = methods.best(unit)
        given = methods.allocated["uniform" if unit == "block" else "erk"]  # its layers have this unit
        identity = {
            "budget": sum(given.zeros),
            "sparsity": sparsity,
            "criterion": criterion,
            "unit": unit,
            **scores.identity(sequences),
        }
        with progress_bar("search", settings.generations, progress) as advance:
            found = _evolve(scores, given.layers, start.zeros, settings, identity, advance)
        methods.scores["search"] = scores.score("search", found)
        return make_allocation(
            analysis,
            given.layers,
            found,
            "sparsity",
            given.left_out,
            budget=sparsity,
            method=f"search, {settings.generations} generations from {start.method}, seed {settings.seed}",
            unit=unit,
            compared=tuple(methods.ranked.values()),
            criterion=criterion,
            estimate=announce.text,
        )


def _evolve(
    scores: TextScores,
    layers: Sequence[LayerAllocation],
    start: Sequence[int],
    settings: SearchSettings,
    identity: dict[str, str | int | float],
    advance: Callable[..., object],
) -> list[int]:
    """Return the zeros of every layer after the search over those of the units."""
    members: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        members.setdefault(layer.unit, []).append(place)
    groups = list(members.values())
    sizes = [sum(layers[place].numel for place in group) for group in groups]

    def spread(units: Units) -> list[int]:
        """Return the zeros of the layers: the same sparsity for all layers of a unit."""
        zeros = [0] * len(layers)
        for group, size, total in zip(groups, sizes, units, strict=True):
            shares = apportion([total / size] * len(group), [layers[place].numel for place in group], total)
            for place, share in zip(group, shares, strict=True):
                zeros[place] = share
        return zeros

    return spread(
        evolve(
            tuple(sum(start[place] for place in group) for group in groups),
            zeros_of(sizes, sum(start)),
            settings,
            lambda units, numbers: scores.of_batches(spread(units), numbers),
            identity=identity,
            advance=advance,
        )
    )
