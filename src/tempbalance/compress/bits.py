"""How many bits the weights of each layer get under one budget, and the recipe that quantizes them so."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tempbalance._files import write_whole
from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import BudgetPlan
from tempbalance.compress.budget import raise_levels
from tempbalance.compress.budget_units import MOST_POWER, Unit, find_units
from tempbalance.errors import AllocationError

__all__ = ["BitAllocation", "BitShare", "allocate_bits", "export_bits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BitShare:
    """What one module gets of the bits.

    Attributes:
        name: Name of the module; of a matrix in a stack of experts, its name in the analysis.
        unit: Name of the module or block whose width it shares.
        shape: Shape of its weight.
        numel: Number of its weights.
        alpha: Its exponent, the mean over its parts; None where there is none.
        bits: Bits per weight.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    numel: int
    alpha: float | None
    bits: int


@dataclass(frozen=True, kw_only=True)
class BitAllocation(BudgetPlan[int]):
    """A bit-width for every module that is to be quantized: a mapping from its name to bits per weight.

    Attributes:
        source: The model that was analysed.
        bits: The budget, in bits per weight on average.
        method: How it was shared out, and with which parameters.
        unit: Whether layers or blocks share a width.
        layers: What each module gets, in model order.
        revision: Commit of a model from the hub, where it is known.
        settings: Of the analysis: estimator, windows, versions.
    """

    _share: ClassVar[type[BitShare]] = BitShare
    _quantity: ClassVar[str] = "bits"

    bits: float
    layers: tuple[BitShare, ...]


def allocate_bits(
    analysis: Analysis,
    bits: float,
    *,
    widths: Sequence[int] = (2, 3, 4, 8),
    gamma: float = 1.0,
    unit: Literal["layer", "block"] = "layer",
) -> BitAllocation:
    """Share a number of bits per weight out over the linear layers and experts: heavy-tailed ones get more.

    AlphaQ (Yang et al. 2026, arXiv:2606.04980): of all plans within the budget, that of the least weighted noise
    ``sum_i (median(alpha) / alpha_i)^gamma n_i Var(W_i) 2^(-2 b_i)``. A unit without an alpha counts as one of median
    alpha. Where all alphas are equal, or ``gamma`` is 0, the variances alone decide.

    Deviations: (1) noise and budget count weights, ``n_i`` of them, where the released code counts matrices; among
    experts of one size that is the same. (2) ``Var(W)`` is the mean square. (3) The authors solve an integer programme;
    here the steps up of most gain per bit are taken while they fit. The noise is the least there is if all steps cost
    the same, else it exceeds that by less than one step (see ``raise_levels``). (4) They quantize the experts of a
    mixture, at 1 to 4 bits; here all linear layers inside blocks are, at the widths that quantizers store (in a
    model without blocks, all). (5) They fit the largest 10 % of the eigenvalues of windows of 128 x 128:
    ``analyze(model, estimator=Hill(share=0.1), windows=FARMS(rows=128))`` comes close.

    Args:
        analysis: What ``analyze`` has found.
        bits: Bits per weight, on average; scales and zero points come on top.
        widths: The widths to choose from.
        gamma: How much alpha counts against the variance; 1 in the paper's code, 10 in one of its recipes.
        unit: Whether each module has a width of its own, or all of a block share one. Engines that fuse q, k and v, or
            gate and up, into one matrix need one width for them.

    Returns:
        The plan. It costs no more than the budget, and what is left is too little for any step up.

    Raises:
        AllocationError: There is nothing to quantize, or a parameter is out of range.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> weights = {name: weight / weight.std() for name, weight in weights.items()}
        >>> dict(allocate_bits(tb.analyze(weights), bits=3, gamma=10))
        {'h.0.fc': 4, 'h.1.fc': 3, 'h.2.fc': 2}
    """
    levels = sorted(set(widths))
    if not levels or levels[0] < 1 or not levels[0] <= bits <= levels[-1]:
        raise AllocationError(f"bits must lie between the least and the greatest of the widths {widths}, got {bits}")
    if not 0 <= gamma <= MOST_POWER:
        raise AllocationError(f"gamma must be in [0, {MOST_POWER}], got {gamma}")
    units = find_units(analysis, {"linear", "experts"}, unit)
    sizes = [sum(math.prod(module.shape) for module in each.modules) for each in units]
    noise = [math.pow(each.relative_alpha, -gamma) * _energy(each) for each in units]

    def gain(i: int, now: int, higher: int) -> float:
        """How much noise a bit spent on this step saves."""
        return noise[i] * (math.pow(4, -now) - math.pow(4, -higher)) / (sizes[i] * (higher - now))

    found = raise_levels(levels, sizes, bits * sum(sizes), gain)
    return BitAllocation(
        source=analysis.source,
        bits=bits,
        method=f"AlphaQ, gamma {gamma}, widths {levels}",
        unit=unit,
        layers=tuple(
            BitShare(
                name=module.name,
                unit=each.name,
                shape=module.shape,
                numel=math.prod(module.shape),
                alpha=module.alpha,
                bits=width,
            )
            for each, width in zip(units, found, strict=True)
            for module in each.modules
        ),
        revision=analysis.settings.get("revision"),
        settings=dict(analysis.settings),
    )


def _energy(unit: Unit) -> float:
    """Sum of the squared weights."""
    rows = [row for module in unit.modules for row in module.rows]
    energy = math.fsum(row.mean_square * math.prod(row.shape) for row in rows)
    if not math.isfinite(energy):
        raise AllocationError(f"{unit.name} has no mean square: an older tempbalance analysed it; analyse it anew")
    return energy


_EXPERT = re.compile(r"(?P<stack>.+)\.(?P<name>\w+):(?P<index>\d+)(:(?P<part>gate|up))?")


def export_bits(
    plan: BitAllocation,
    path: str | os.PathLike[str],
    *,
    modifier: Literal["GPTQModifier", "QuantizationModifier"] = "GPTQModifier",
    group_size: int = 128,
) -> None:
    """Write a plan as a recipe for llm-compressor: ``oneshot(model, recipe=path, ...)``.

    One group of modules per width, each module by its full name; weights only, symmetric integers with a scale per
    group of columns. The file is JSON, which is YAML, too. Stacked experts are named as llm-compressor names them
    once it has taken the stacks apart (``load_quantizable_moe``).

    Args:
        plan: The plan; widths from 2 to 8.
        path: The file, whole or not at all.
        modifier: ``"GPTQModifier"`` needs calibration data, ``"QuantizationModifier"`` rounds to nearest.
        group_size: Columns that share a scale; it must divide the columns of every module.

    Raises:
        AllocationError: A module cannot be quantized so.
        AnalysisError: The file cannot be written.
    """
    widths = sorted(set(plan.values()))
    if widths[0] < 2 or widths[-1] > 8:  # noqa: PLR2004  what compressed-tensors packs
        raise AllocationError(f"llm-compressor stores integers of 2 to 8 bits, and the plan has widths {widths}")
    for layer in plan.layers:
        if layer.shape[1] % group_size:
            raise AllocationError(
                f"{layer.name} has {layer.shape[1]} columns, not a multiple of group_size={group_size}"
            )
    groups = {
        f"weights_{width}_bits": {
            "targets": [_target(layer.name) for layer in plan.layers if layer.bits == width],
            "weights": {
                "num_bits": width,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": group_size,
            },
        }
        for width in widths
    }
    recipe = {"quantization_stage": {"quantization_modifiers": {modifier: {"config_groups": groups}}}}
    write_whole(path, json.dumps(recipe, indent=1).encode() + b"\n")


def _target(name: str) -> str:
    """Name of a module in the model that llm-compressor sees."""
    if ":" not in name:
        return name
    match = _EXPERT.fullmatch(name)
    projection = match and (f"{match['part']}_proj" if match["part"] else match["name"])
    if match is None or projection not in {"gate_proj", "up_proj", "down_proj"}:
        raise AllocationError(f"{name} does not become a module of its own in llm-compressor: analyse without it")
    return f"{match['stack']}.{match['index']}.{projection}"
