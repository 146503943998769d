"""A search for multipliers as tables on the terminal and as one HTML page."""

from __future__ import annotations

from rich.console import Console

from tempbalance.report.figures import search_figure
from tempbalance.report.page import Html, escaped, model_name, number, render_page, table_html
from tempbalance.report.study_report import print_study
from tempbalance.report.terminal import plain_table, plain_text, print_table
from tempbalance.study import SearchResult

__all__ = ["print_search", "render_search"]

_COLUMNS = ("unit", "parameters", "multiplier", "learning rate", "good range")


def print_search(console: Console, result: SearchResult) -> None:
    """Print one row per unit, the confirmation, the recommendation and notes."""
    console.print(plain_text(_summary(result)), highlight=False)
    table = plain_table(*_COLUMNS)
    for row in _rows(result):
        table.add_row(plain_text(row[0]), *row[1:])
    print_table(console, table)
    for note in result.notes:
        console.print(plain_text(note))
    console.print()
    if result.confirmation is None:
        console.print(plain_text(result.recommendation, "bold"))
    else:
        print_study(console, result.confirmation)


def _summary(result: SearchResult) -> str:
    best, plain = result.best, result.plain
    return (
        f"Best of {len(result.trials)} trials ({best.origin}): validation {best.mean:.4g} with base rate {best.lr:g}; "
        f"plain: {f'{plain.mean:.4g}' if plain.status == 'complete' else plain.status} with {plain.lr:g} (seeds of "
        f"each: {len(best.values)})"
    )


def _rows(result: SearchResult) -> list[tuple[str, ...]]:
    rows = list[tuple[str, ...]]()
    for unit, names in result.units.items():
        multiplier = result.best.multipliers.get(unit, 1.0)
        low, high = result.good_range(unit)
        rate = f"{result.best.lr * multiplier:.3g}"
        rows.append((unit, str(len(names)), f"{multiplier:.3g}", rate, f"{low:.3g} to {high:.3g}"))
    return rows


def render_search(result: SearchResult) -> str:
    """Render a search as one HTML page."""
    task = str(result.settings["task"]).rpartition(" (")[0]
    trials = [
        (
            str(place),
            each.origin,
            f"{each.lr:.4g}",
            number(each.mean, ".4g"),
            str(len(each.values)),
            each.status,
            ", ".join(f"{unit} {multiplier:.3g}" for unit, multiplier in each.multipliers.items()),
        )
        for place, each in [*enumerate(result.trials, 1), *(("final", each) for each in result.finalists)]
    ]
    columns = ("trial", "origin", "learning rate", "validation", "seeds", "status", "multipliers")
    return render_page(
        "search",
        kicker="Which learning rate for each unit? Found by validation, all trials with the same seeds.",
        title=model_name(task),
        source=task,
        figures={"multipliers": search_figure(result)},
        recommendation=result.recommendation,
        summary=_summary(result),
        notes=Html("".join(f"<li>{escaped(note)}</li>" for note in result.notes)),
        units=table_html(_COLUMNS, _rows(result), text=("unit", "good range")),
        trials=table_html(columns, trials, text=("origin", "status", "multipliers")),
        settings=result.settings,
    )
