"""The HTML report of a tracked run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from tempbalance.analysis import Track, TrackedLayer
from tempbalance.report.findings_text import findings_data
from tempbalance.report.page import render_page

__all__ = ["render_track"]

_DIGITS = 4


def render_track(tracked: Track) -> str:
    """Render a tracked run as one HTML page.

    Args:
        tracked: The run.

    Returns:
        HTML with its style, script, plotly.js and data; the page loads no other file.
    """
    first, last = tracked.checkpoints[0].name, tracked.checkpoints[-1].name
    parents = {PurePath(checkpoint.source).parent.name for checkpoint in tracked.checkpoints}
    run = f"{parents.pop()}: " if len(parents) == 1 and "" not in parents else ""
    title = f"{run}{first} to {last}"
    known = all(checkpoint.step is not None for checkpoint in tracked.checkpoints)
    return render_page(
        "track",
        title=title,
        data={
            "findings": findings_data(tracked.findings),
            "settings": {key: str(value) for key, value in tracked.settings.items()},
            "axis": "step" if known else "checkpoint",
            "steps": tracked.steps,
            "checkpoints": [
                {
                    "name": checkpoint.name,
                    "step": checkpoint.step,
                    "alpha": _number(checkpoint.median_alpha),
                    "imbalance": _number(checkpoint.imbalance),
                    "stableRank": _number(checkpoint.median_stable_rank),
                    "drift": _number(drift),
                    "findings": ", ".join(dict.fromkeys(finding.kind for finding in checkpoint.findings)),
                }
                for checkpoint, drift in zip(tracked.checkpoints, tracked.drift, strict=True)
            ],
            "layers": _lines(tracked),
        },
        run=title,
    )


def _lines(tracked: Track) -> list[dict[str, Any]]:
    """Return each layer with its values over the checkpoints; None where it is not there."""
    rows = [{layer.name: layer for layer in checkpoint.layers} for checkpoint in tracked.checkpoints]
    names = dict.fromkeys(name for checkpoint in rows for name in checkpoint)

    def values(name: str, of: Callable[[TrackedLayer], float]) -> list[float | None]:
        """Return the values of a layer."""
        return [_number(of(layers[name])) if name in layers else None for layers in rows]

    return [
        {
            "name": name,
            "alpha": values(name, lambda layer: layer.alpha),
            "stableRank": values(name, lambda layer: layer.stable_rank),
            "drift": values(name, lambda layer: layer.drift),
        }
        for name in names
    ]


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
