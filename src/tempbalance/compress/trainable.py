"""Choose the layers that are trained; the others are frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.analysis.analyzer import Source, open_source
from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget_units import make_allocation
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.errors import AllocationError, WeightError, check_numbers, check_type
from tempbalance.layers import find_weights, parameter_names, unwrapped
from tempbalance.metrics import bulk_edge, mean_alpha
from tempbalance.spectra import as_matrices, spectra
from tempbalance.types import LayerStats

__all__ = ["allocate_trainable", "set_trainable", "signal_to_noise"]

_Method = Literal["alpha", "snr", "drift"]


def allocate_trainable(
    analysis: Analysis, share: float, *, method: _Method = "snr", scores: Mapping[str, float] | None = None
) -> Allocation:
    """Choose the layers to fine-tune: the fraction ``share`` of the layers of each type with the highest scores.

    The layers of one type have the same name in each block (``self_attn.q_proj.weight``). Weights outside of the blocks
    are trained (the head, and embeddings if they were analysed, with ``Select(embeddings=True)``), as in Spectrum;
    other parameters, such as norms, are frozen. At least one layer of each type is trained.

    ``"snr"`` is Spectrum (Hartford et al. 2024, arXiv:2406.06623): the layers with the highest signal-to-noise ratio,
    ``scores=signal_to_noise(model)``. ``"alpha"``: the layers with the largest alpha, which are the least well trained.
    ``"drift"``: the layers that have moved most from a base model, such as in a short run of full fine-tuning:
    ``scores={row.name: row.relative_change for row in compare(base, model).layers}``. The training
    method ``spectrum`` compares ``"snr"`` and ``"alpha"`` in a study.

    Args:
        analysis: The result of ``analyze``. The parts of a fused weight and stacked experts are one parameter, whose
            score is their mean.
        share: Fraction of the layers of each type, in [0, 1].
        method: What the scores are. ``"alpha"`` takes them from the analysis.
        scores: A score by name of the weight.

    Returns:
        The allocation, with 1 for each weight that is trained and 0 for the others. ``set_trainable`` applies it.

    Raises:
        AllocationError: A score is missing or NaN, or a parameter is out of range.

    Example:
        >>> import tempbalance as tb
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> allocation = allocate_trainable(tb.analyze(weights), 1 / 3, scores=signal_to_noise(weights))
        >>> dict(allocation)
        {'h.0.fc.weight': 1, 'h.1.fc.weight': 0, 'h.2.fc.weight': 0}
    """
    check_type("analysis", analysis, Analysis)
    check_type("method", method, str)
    check_numbers(share=share)
    if not 0 <= share <= 1:
        raise AllocationError(f"share must be in [0, 1], got {share}")
    if method not in get_args(_Method):
        raise AllocationError(f"method must be one of {', '.join(map(repr, get_args(_Method)))}, got {method!r}")
    if (scores is None) != (method == "alpha"):
        text = "takes no scores: they are in the analysis" if method == "alpha" else "needs scores"
        raise AllocationError(f"method {method!r} {text}")
    if scores is not None:
        check_type("scores", scores, Mapping)
        check_numbers(**{f"the score of {name}": score for name, score in scores.items()})
    rows: dict[str, list[LayerStats]] = {}
    for row in analysis.layers:
        rows.setdefault(row.name.partition(":")[0], []).append(row)
    if not any(row.block is not None for row in analysis.layers):
        raise AllocationError(f"{analysis.source} has no blocks, so no layers of one type to choose from")
    layers = [_layer(name, own, scores) for name, own in rows.items()]
    types: dict[str, list[LayerAllocation]] = {}
    for layer in layers:
        block = rows[layer.name][0].block
        if block is not None:
            types.setdefault(layer.name.removeprefix(f"{block}."), []).append(layer)
    trained = {name for name, own in rows.items() if own[0].block is None}
    for own in types.values():
        ranked = sorted(own, key=lambda layer: -layer.score)
        trained |= {layer.name for layer in ranked[: max(1, math.floor(share * len(own) + 1e-9)) if share else 0]}
    return make_allocation(
        analysis,
        layers,
        [int(layer.name in trained) for layer in layers],
        "trainable",
        budget=share,
        method={"snr": "SNR", "drift": "drift", "alpha": "largest alpha"}[method],
        unit="layer",
    )


def _layer(name: str, rows: list[LayerStats], scores: Mapping[str, float] | None) -> LayerAllocation:
    alpha, stderr = mean_alpha((row.alpha, row.stderr) for row in rows)
    own = [row.alpha if scores is None else scores.get(row.name, math.nan) for row in rows]
    known = [score for score in own if not math.isnan(score)]
    if scores is not None and len(known) < len(rows) and rows[0].block is not None:
        raise AllocationError(f"scores has no score of {name}: compute them on the analysed model")
    shape = rows[0].shape if len(rows) == 1 else (len(rows), *rows[0].shape)
    if len({row.shape for row in rows}) > 1:
        shape = (sum(math.prod(row.shape) for row in rows),)
    score = fmean(known) if known else math.nan if rows[0].block is None else -math.inf
    return LayerAllocation(name=name, unit=name, shape=shape, alpha=alpha, stderr=stderr, score=score)


def signal_to_noise(source: Source, *, key: str | None = None, progress: bool = True) -> dict[str, float]:
    """Compute Spectrum's signal-to-noise ratio of each weight matrix.

    It is the sum of the singular values above the edge of the noise over the sum of those below, divided by the largest
    (Hartford et al. 2024, arXiv:2406.06623). The edge is that of the Marchenko-Pastur law, ``sigma (sqrt(rows) +
    sqrt(columns))``, with the standard deviation ``sigma`` of the noise estimated from the median singular value
    (Gavish and Donoho 2014). The released code (``released.spectrum_snr``) takes the interquartile range of the
    *singular values* as that of a normal distribution, without the factor of the long side.

    Args:
        source: A source as for ``analyze``; a checkpoint is read tensor by tensor.
        key: Key of the state dict in a training checkpoint.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The ratio by name of the weight; 0 without a singular value above the edge, infinite without one below. Weights
        that cannot be analysed are left out.

    Example:
        >>> noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> found = signal_to_noise({"noise": noise, "more": noise + 3 * torch.eye(64)[:1].T @ torch.ones(1, 64)})
        >>> found["noise"], round(found["more"], 5)
        (0.0, 0.0024)
    """
    found = {}
    with open_source(source, key) as (opened, _):
        weights, _ = find_weights(opened)
        with progress_bar("computing signal-to-noise ratios", len(weights), progress) as advance:
            for weight in weights:
                try:
                    (spectrum,) = spectra([as_matrices(weight.load().detach(), weight.layout)])
                except WeightError:
                    continue
                finally:
                    advance(1)
                values = spectrum.eigenvalues.clamp(min=0).sqrt()
                signal = values[spectrum.eigenvalues > bulk_edge(spectrum)].sum()
                ratio = signal / (values.sum() - signal) / values[-1]
                found[weight.name] = float(torch.where(signal > 0, ratio, 0.0))
    return found


def _weights_of_bias(name: str) -> tuple[str, ...]:
    """Return the names that the weight of a bias can have: ``in_proj_weight`` of ``in_proj_bias``; else nothing."""
    owner, dot, attribute = name.rpartition(".")
    if "bias" not in attribute:
        return ()
    return tuple(
        f"{owner}{dot}{each}" for each in (attribute.replace("bias", "weight"), attribute.removesuffix("_bias"))
    )


def set_trainable(model: nn.Module, allocation: Allocation) -> int:
    """Freeze a model except for the layers of an allocation: sets ``requires_grad`` of every parameter.

    The bias of a layer is trained with its weight. Call it before the optimizer is built and before the model is
    wrapped in DDP or FSDP.

    Args:
        model: A live model, which changes in place.
        allocation: The result of ``allocate_trainable`` for this model.

    Returns:
        The number of trainable parameters.

    Raises:
        AllocationError: The allocation is for another model or another quantity; the model is then unchanged.

    Example:
        >>> import tempbalance as tb
        >>> model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
        >>> shape = (64, 64)
        >>> rows = [LayerAllocation(name=f"{i}.weight", unit="", shape=shape, trainable=i % 2) for i in range(3)]
        >>> head = {"source": "model", "quantity": "trainable", "budget": 0.5, "method": "by hand", "unit": "layer"}
        >>> set_trainable(model, Allocation(**head, layers=tuple(rows))), model[0].weight.requires_grad
        (4160, False)
    """
    check_type("model", model, nn.Module)
    check_type("allocation", allocation, Allocation)
    allocation.check_quantity("trainable")
    parameters: dict[str, Tensor] = parameter_names(unwrapped(model))
    for layer in allocation.layers:
        parameter = parameters.get(layer.name)
        if parameter is None or parameter.numel() != layer.numel:
            here = "is no parameter here" if parameter is None else f"has shape {tuple(parameter.shape)} here"
            raise AllocationError(f"the allocation is for another model: {layer.name}, shape {layer.shape}, {here}")
    trained = {name for name, value in allocation.items() if value}
    for name, parameter in parameters.items():
        parameter.requires_grad_(bool(trained & {name, *_weights_of_bias(name)}))
    return sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
