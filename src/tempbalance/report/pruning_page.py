"""One HTML page about a pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tempbalance._files import dumps, write_atomically
from tempbalance.compress import PruningResult
from tempbalance.report.page import render_page

__all__ = ["headline", "render_pruning", "save_pruning_report"]


def headline(result: PruningResult) -> str:
    """Return the result in two or three sentences of plain text."""
    units = sorted(result.units, key=lambda unit: unit.achieved)
    sentences = [
        f"{result.zeros:,} of {result.weights:,} weights are zero: {result.zeros / result.weights:.1%}, "
        f"target {result.allocation.budget:.1%}."
    ]
    if len(units) > 1:
        low, high = units[0], units[-1]
        sentences.append(f"It ranges from {low.achieved:.1%} in {low.name} to {high.achieved:.1%} in {high.name}.")
    if result.perplexity is not None:
        before, after = result.perplexity
        sentences.append(f"Perplexity was {before} before and is {after} after pruning.")
    return " ".join(sentences)


def render_pruning(result: PruningResult) -> str:
    """Render a pruned model as one HTML page."""
    settings: dict[str, Any] = {"pruning criterion": result.method, "allocation": result.allocation.method}
    if result.allocation.group is not None:
        settings["zeros in groups of"] = result.allocation.group
    settings |= {f"calibration, {key}": value for key, value in (result.calibration or {}).items()}
    settings |= result.allocation.settings
    return render_page(
        "pruning",
        title=f"Pruning of {result.allocation.source}",
        data=result.to_json() | {"settings": {key: str(value) for key, value in settings.items()}},
        source=result.allocation.source,
        headline=headline(result),
    )


def save_pruning_report(result: PruningResult, path: Path) -> None:
    """Save a pruned model as an HTML page if the suffix is ``.html``, else as JSON."""
    text = render_pruning(result) if path.suffix.lower() == ".html" else dumps(result.to_json())
    write_atomically(path, text.encode())
