"""Allocate bits per weight over the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget import raise_levels
from tempbalance.compress.budget_units import (
    MAX_POWER,
    BudgetUnit,
    find_units,
    make_allocation,
    relative_alphas,
    values_of_layers,
)
from tempbalance.errors import AllocationError, check_integer, check_numbers, check_type

__all__ = ["allocate_bits"]


def allocate_bits(
    analysis: Analysis,
    bits: float,
    *,
    widths: Sequence[int] = (2, 3, 4, 8),
    gamma: float = 1.0,
    unit: Literal["layer", "block"] = "layer",
) -> Allocation:
    """Allocate a mean number of bits per weight over linear layers and experts: heavy-tailed layers get more.

    AlphaQ (Yang et al. 2026, arXiv:2606.04980): among all allocations within the budget, minimise the weighted noise
    ``sum_i (median(alpha) / alpha_i)^gamma n_i Var(W_i) 2^(-2 b_i)``. A unit without an alpha counts as one of median
    alpha. If all alphas are equal or ``gamma`` is 0, the variances alone decide.

    Deviations: (1) noise and budget count weights, ``n_i`` of them, where the released code counts matrices; for
    experts of one size that is the same. (2) ``Var(W)`` is the mean square. (3) The authors solve an integer programme;
    here the steps with the highest gain per bit are taken while they fit. The noise is minimal if all steps cost the
    same, else it exceeds the minimum by less than one step (see ``raise_levels``). (4) The authors quantize the experts
    of a mixture to 1 to 4 bits; here all linear layers inside blocks are quantized (in a model without blocks, all
    linear layers), to widths that quantizers store. (5) The authors fit the largest 10 % of the eigenvalues of windows
    of 128 x 128; ``analyze(model, estimator=Hill(share=0.1), windows=FARMS(rows=128))`` is close to that.

    Args:
        analysis: The result of ``analyze``.
        bits: Mean bits per weight, without scales and zero points.
        widths: Allowed bit widths.
        gamma: Weight of alpha against the variance; 1 in the paper's code, 10 in one of its recipes.
        unit: Whether each module has its own width or all modules of a block share one. Engines that fuse q, k and v,
            or gate and up, into one matrix need one width for them.

    Returns:
        The allocation. It costs at most the budget, and no further step up fits.

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
    check_type("analysis", analysis, Analysis)
    check_type("widths", widths, Sequence)
    for width in widths:
        check_integer("a width", width)
    check_numbers(bits=bits, gamma=gamma)
    levels = sorted(set(widths))
    if not levels or levels[0] < 1 or not levels[0] <= bits <= levels[-1]:
        raise AllocationError(f"bits must be between the smallest and the largest of the widths {widths}, got {bits}")
    if not 0 <= gamma <= MAX_POWER:
        raise AllocationError(f"gamma must be in [0, {MAX_POWER}], got {gamma}")
    layers, units = find_units(analysis, unit, {"linear", "experts"})
    sizes = [each.numel for each in units]
    weights = [math.pow(alpha, -gamma) for alpha in relative_alphas(units)]
    noise = [weight * _sum_of_squares(each) for weight, each in zip(weights, units, strict=True)]

    def gain(i: int, now: int, higher: int) -> float:
        """Noise that one bit of this step saves."""
        return noise[i] * (math.pow(4, -now) - math.pow(4, -higher)) / (sizes[i] * (higher - now))

    found = raise_levels(levels, sizes, bits * sum(sizes), gain)
    return make_allocation(
        analysis,
        layers,
        values_of_layers(layers, units, found),
        "bits",
        budget=bits,
        method=f"AlphaQ, gamma {gamma}, widths {levels}",
        unit=unit,
    )


def _sum_of_squares(unit: BudgetUnit) -> float:
    energy = math.fsum(row.mean_square * math.prod(row.shape) for row in unit.rows)
    if not math.isfinite(energy):
        raise AllocationError(
            f"{unit.name} has no mean square, because an older tempbalance analysed it: analyse the model again"
        )
    return energy
