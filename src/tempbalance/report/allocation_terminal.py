"""Print an allocation: the budget, and the value of each unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console

from tempbalance.compress import Allocation
from tempbalance.report.terminal import bar, count, number, plain_table, plain_text, print_findings, print_table

__all__ = ["print_allocation", "print_compared", "units_shown"]

_ALL = 40  # up to this many units are all printed
_EXTREMES = 4
_Unit = TypeVar("_Unit")
_NAMES = {"sparsity": "sparsity", "bits": "bits per weight", "rank": "rank", "trainable": "share of trained layers"}


def print_allocation(console: Console, allocation: Allocation) -> None:
    """Print the budget and method, and the value of each unit; of a large model, the smallest and largest values."""
    quantity, units = _NAMES[allocation.quantity], allocation.units
    console.print(plain_text(allocation.source, "bold"), soft_wrap=True)
    console.print(
        plain_text(
            f"{count(len(allocation), 'weight matrix', 'weight matrices')}, "
            f"{_used(allocation, quantity)}, allocated by {allocation.method}"
            + (f", in groups of {allocation.group}" if allocation.group else "")
        )
    )
    print_findings(console, allocation.findings)
    print_compared(console, allocation)
    shown = units_shown(units, lambda unit: unit.value)
    largest = max((unit.value for unit in units), default=0.0)
    table = plain_table("unit", "alpha", "stderr", quantity, "")
    table.columns[-1].justify = "left"
    for unit in shown:
        table.add_row(
            plain_text(unit.name.removesuffix(".weight")),
            number(unit.alpha),
            number(unit.stderr),
            _value(allocation, unit.value),
            bar(unit.value / largest) if largest else "",
        )
    print_table(console, table)
    if len(shown) < len(units):
        hidden = count(len(units) - len(shown), "other", "others")
        console.print(f"{hidden} not shown; --out FILE.json and --json have all", style="dim")


def print_compared(console: Console, allocation: Allocation) -> None:
    """Print what each method gives on the calibration text, the best first; nothing if that was not measured."""
    if not allocation.compared:
        return
    table = plain_table("on the calibration text", "KL from dense", "perplexity")
    for score in allocation.compared:
        table.add_row(plain_text(score.method), f"{score.kl:.4f}", f"{score.perplexity:.4g}")
    print_table(console, table)
    if allocation.estimate:
        searched = allocation.method.startswith("search")
        label = "estimate before:" if searched else "next, unless you will recover the model: --allocation search, a"
        console.print(plain_text(f"{label} {allocation.estimate}", "dim"), soft_wrap=True)


def _used(allocation: Allocation, quantity: str) -> str:
    """Return the mean value, and the budget if that is another: a format or N:M sparsity may not exhaust it."""
    target = _value(allocation, allocation.budget)
    if allocation.quantity not in {"bits", "sparsity"} or not allocation.covered:
        return f"{target} {quantity}"
    spent = sum(unit.value * layer.numel for unit in allocation.units for layer in unit.layers)
    used = _value(allocation, spent / allocation.covered)
    return f"{used} {quantity}" + (f" (target {target})" if used != target else "")


def _value(allocation: Allocation, value: float) -> str:
    return f"{value:.1%}" if allocation.quantity == "sparsity" else f"{value:.4g}"


def units_shown(units: Sequence[_Unit], value: Callable[[_Unit], float]) -> list[_Unit]:
    """Return all units of a small model; else those with the smallest and largest values."""
    if len(units) <= _ALL:
        return [*units]
    ranked = sorted(range(len(units)), key=lambda place: value(units[place]))
    return [units[place] for place in sorted({*ranked[:_EXTREMES], *ranked[-_EXTREMES:]})]
