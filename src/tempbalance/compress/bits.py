"""Allocate bits per weight over the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tempbalance.analysis.result import Analysis
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.budget import choose_options, raise_levels
from tempbalance.compress.budget_units import (
    MAX_POWER,
    BudgetUnit,
    find_units,
    make_allocation,
    relative_alphas,
    values_of_layers,
)
from tempbalance.compress.formats import WeightFormat, find_format, integers_that_fit
from tempbalance.compress.layer_allocation import LayerAllocation
from tempbalance.errors import AllocationError, check_integer, check_numbers, check_type

__all__ = ["Offer", "allocate_bits", "find_offers"]

_Method = Literal["alpha", "error", "uniform"]


def allocate_bits(  # noqa: PLR0913  most are keyword options
    analysis: Analysis,
    bits: float,
    *,
    widths: Sequence[int] | Sequence[str] = (2, 3, 4, 8),
    method: _Method | None = None,
    gamma: float | None = None,
    unit: Literal["layer", "block"] = "layer",
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> Allocation:
    """Allocate a mean number of bits per weight over linear layers and experts.

    ``"alpha"``, AlphaQ (Yang et al. 2026, arXiv:2606.04980): heavy-tailed layers get more. Among all allocations within
    the budget, minimise the weighted noise ``sum_i (median(alpha) / alpha_i)^gamma n_i Var(W_i) 2^(-2 b_i)``. A unit
    without an alpha counts as one of median alpha. If all alphas are equal or ``gamma`` is 0, the variances alone
    decide. On our language model this was much worse than ``"uniform"``: docs/results/quantization.md.

    ``"error"``, as in HIGGS (Malinovskii et al. 2024, arXiv:2411.17525): minimise the sum of the errors that
    ``quantization_errors`` measured for each layer and format.

    ``"uniform"``: the same width or format everywhere, the largest within the budget.

    Widths are bits per weight without scales, or names of number formats (see ``find_format``), which cost what they
    need in memory, scales included. With formats the optimum is exact: an integer programme, solved by dynamic
    programming. A layer can have the formats whose blocks divide its columns (the last axis).

    Deviations from AlphaQ: (1) noise and budget count weights, ``n_i`` of them, where the released code counts
    matrices; for experts of one size that is the same. (2) ``Var(W)`` is the mean square. (3) The authors solve an
    integer programme; with plain widths, the steps with the highest gain per bit are taken here while they fit. The
    noise is minimal if all steps cost the same, else it exceeds the minimum by less than one step (see
    ``raise_levels``). (4) The authors quantize the experts of a mixture to 1 to 4 bits; here all linear layers inside
    blocks are quantized (in a model without blocks, all linear layers), to widths that quantizers store. (5) The
    authors fit the largest 10 % of the eigenvalues of windows of 128 x 128; ``analyze(model,
    estimator=Hill(share=0.1), windows=FARMS(rows=128))`` is close to that. (6) With formats, ``2^(-2 b_i)`` counts the
    bits of scales, unless ``errors`` replace ``n_i Var(W_i) 2^(-2 b_i)``.

    Args:
        analysis: The result of ``analyze``. Routers of experts get no width: quantizers leave them as they are.
        bits: Mean bits per weight: of formats with their scales, else without.
        widths: Allowed bit widths, or names of formats such as ``("int3_g128", "nvfp4", "fp8", "bf16")``.
        method: What decides; by default ``"error"`` if there are ``errors``, else ``"uniform"``.
        gamma: For ``"alpha"``: weight of alpha against the variance; 1 by default and in the paper's code, 10 in one of
            its recipes.
        unit: Whether each module has its own width or all modules of a block share one. Engines that fuse q, k and v,
            or gate and up, into one matrix need one width for them.
        errors: The result of ``quantization_errors`` for these formats; ``"error"`` needs it, ``"alpha"`` weights it.

    Returns:
        The allocation. It costs at most the budget.

    Raises:
        AllocationError: There is nothing to quantize, a parameter is out of range, a format is unknown, no format fits
            a layer, or the budget is below the cheapest formats.

    Example:
        >>> import tempbalance as tb, torch
        >>> from tempbalance.testing import matrix_with_spectrum, pareto_quantiles
        >>> spectra = {f"h.{i}.fc.weight": pareto_quantiles(64, 2.0 + i) for i in range(3)}
        >>> weights = {name: matrix_with_spectrum(spectrum, (64, 64)) for name, spectrum in spectra.items()}
        >>> weights = {name: weight / weight.std() for name, weight in weights.items()}
        >>> dict(allocate_bits(tb.analyze(weights), bits=3, method="alpha", gamma=10))
        {'h.0.fc': 4, 'h.1.fc': 3, 'h.2.fc': 2}
        >>> formats = ["int3_g32", "nvfp4", "int8_g32"]
        >>> errors = tb.compress.quantization_errors(weights, formats)
        >>> allocation = allocate_bits(tb.analyze(weights), bits=5.5, widths=formats, method="error", errors=errors)
        >>> [layer.format for layer in allocation.layers]
        ['nvfp4', 'nvfp4', 'nvfp4']
    """
    check_type("analysis", analysis, Analysis)
    check_type("widths", widths, Sequence)
    method = method or ("uniform" if errors is None else "error")
    check_type("method", method, str)
    if gamma is not None and method != "alpha":
        raise AllocationError(f"gamma has no effect with method {method!r}: leave it out, or choose 'alpha'")
    gamma = 1.0 if gamma is None else gamma
    check_numbers(bits=bits, gamma=gamma)
    if errors is not None:
        check_type("errors", errors, Mapping)
    if method not in get_args(_Method):
        raise AllocationError(f"method must be one of {', '.join(map(repr, get_args(_Method)))}, got {method!r}")
    if method == "uniform" and errors is not None:
        raise AllocationError("errors have no effect with method 'uniform': leave them out, or choose 'error'")
    if not 0 <= gamma <= MAX_POWER:
        raise AllocationError(f"gamma must be in [0, {MAX_POWER}], got {gamma}")
    names = [width for width in widths if isinstance(width, str)]
    layers, units = find_units(analysis, unit, {"linear", "experts"})
    if isinstance(widths, str) or (names and len(names) < len(widths)):
        raise AllocationError(f"widths must be all integers or all names of formats, got {widths!r}")
    if names:
        offers = find_offers(units, [find_format(name) for name in names], method, gamma, errors or {})
        chosen = dict(zip((each.name for each in units), _choose(offers, units, bits, method), strict=True))
        layers = [replace(layer, format=chosen[layer.unit].name) for layer in layers]
        found: Sequence[float] = [chosen[layer.unit].cost(layer.shape) / layer.numel for layer in layers]
    else:
        if method == "error" or errors is not None:
            raise AllocationError("errors are of formats: give their names as widths, such as ('int3', 'int4', 'int8')")
        for width in widths:
            check_integer("a width", width)
        levels = sorted({int(width) for width in widths})
        if not levels or levels[0] < 1 or not levels[0] <= bits <= levels[-1]:
            text = f"bits must be between the smallest and the largest of the widths {widths}, got {bits}"
            raise AllocationError(text)
        found = values_of_layers(layers, units, _widths(units, levels, bits, method, gamma))
    described = {"alpha": f"AlphaQ, gamma {gamma}", "error": "least error", "uniform": "uniform"}[method]
    return make_allocation(
        analysis,
        layers,
        found,
        "bits",
        budget=bits,
        method=f"{described}, {'formats' if names else 'widths'} {names or levels}",
        unit=unit,
    )


def _widths(units: Sequence[BudgetUnit], levels: Sequence[int], bits: float, method: str, gamma: float) -> list[int]:
    """Choose a plain width for each unit."""
    if method == "uniform":
        return [max(level for level in levels if level <= bits)] * len(units)
    sizes = [each.numel for each in units]
    weights = [math.pow(alpha, -gamma) for alpha in relative_alphas(units)]
    noise = [weight * _sum_of_squares(each) for weight, each in zip(weights, units, strict=True)]

    def gain(i: int, now: int, higher: int) -> float:
        """Noise that one bit of this step saves."""
        return noise[i] * (math.pow(4, -now) - math.pow(4, -higher)) / (sizes[i] * (higher - now))

    return raise_levels(levels, sizes, bits * sum(sizes), gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A format that a unit can have, with its cost in bits, and the loss that a method expects."""

    format: WeightFormat
    cost: int
    loss: float


def find_offers(
    units: Sequence[BudgetUnit],
    formats: Sequence[WeightFormat],
    method: str,
    gamma: float,
    errors: Mapping[str, Mapping[str, float]],
) -> list[list[Offer]]:
    """Return the formats that fit all layers of each unit, with their costs and losses."""
    if method == "error" and not errors:
        raise AllocationError("method 'error' needs errors=quantization_errors(model, formats)")
    found = []
    for each, alpha in zip(units, relative_alphas(units), strict=True):
        weight = math.pow(alpha, -gamma) if method == "alpha" else 1.0
        own = []
        for one in formats:
            if all(one.fits(layer.shape) for layer in each.layers):
                cost = sum(one.cost(layer.shape) for layer in each.layers)
                loss = 0.0
                if errors:
                    loss = weight * math.fsum(_error(errors, layer, one) for layer in each.layers)
                elif method == "alpha":
                    loss = weight * _sum_of_squares(each) * math.pow(4, -cost / each.numel)
                own.append(Offer(format=one, cost=cost, loss=loss))
        if not own:
            sizes = ", ".join(f"{one.name} ({one.block})" for one in formats)
            raise AllocationError(
                f"{each.name}: no format fits, because the columns of {each.layers[0].name}, shape "
                f"{each.layers[0].shape}, or of another layer are no multiple of a block: {sizes}; "
                f"{integers_that_fit(layer.shape for every in units for layer in every.layers)} fits all layers"
            )
        found.append(own)
    return found


def _error(errors: Mapping[str, Mapping[str, float]], layer: LayerAllocation, one: WeightFormat) -> float:
    own = errors.get(layer.name, {})
    check_type(f"the errors of {layer.name}", own, Mapping)
    error = own.get(one.name, math.nan)
    check_numbers(**{f"the error of {one.name}": error})
    if not 0 <= error < math.inf:
        raise AllocationError(
            f"errors has no error of {one.name} in {layer.name}: measure them on this model and for these formats "
            "with quantization_errors"
        )
    return error


def _choose(
    offers: Sequence[Sequence[Offer]], units: Sequence[BudgetUnit], bits: float, method: str
) -> list[WeightFormat]:
    """Choose the formats of least loss within the budget, or one for all."""
    total = sum(each.numel for each in units)
    if method == "uniform":
        names = [set(each.format.name for each in own) for own in offers]
        common = set.intersection(*names)
        offers = [[each for each in own if each.format.name in common] for own in offers]
        if not common:
            raise AllocationError("no format fits all layers: use method 'error', or other formats")
        costs = [sum(place) for place in zip(*([each.cost for each in own] for own in offers), strict=True)]
    else:
        costs = [sum(min(each.cost for each in own) for own in offers)]
    if not bits >= min(costs) / total * (1 - 1e-12):
        raise AllocationError(f"bits must be at least {min(costs) / total:.6g}, the cost of the cheapest formats")
    most = sum(max(each.cost for each in own) for own in offers)
    budget = most if bits * total >= most else math.floor(bits * total * (1 + 1e-12))
    if method == "uniform":
        place = max((cost, -place) for place, cost in enumerate(costs) if cost <= budget)[1]
        return [own[-place].format for own in offers]
    found = choose_options(
        [[each.cost for each in own] for own in offers], [[each.loss for each in own] for own in offers], budget
    )
    return [own[place].format for own, place in zip(offers, found, strict=True)]


def _sum_of_squares(unit: BudgetUnit) -> float:
    energy = math.fsum(row.mean_square * math.prod(row.shape) for row in unit.rows)
    if not math.isfinite(energy):
        raise AllocationError(
            f"{unit.name} has no mean square, because an older tempbalance analysed it: analyse the model again"
        )
    return energy
