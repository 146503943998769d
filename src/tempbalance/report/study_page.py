"""A study as one HTML page."""

from __future__ import annotations

import json

from tempbalance._files import dumps
from tempbalance.report.page import render_page
from tempbalance.study.summary import Summary

__all__ = ["render_study"]


def render_study(summary: Summary) -> str:
    """Render the summary of a study as one HTML page."""
    task = str(summary.settings.get("task", "")).rpartition(" (")[0]
    data = summary.to_json() | {"settings": {key: str(value) for key, value in summary.settings.items()}}
    return render_page(
        "study",
        title=f"Study: {task}",
        data=json.loads(dumps(data)),  # null for NaN
        task=task,
        recommendation=summary.recommendation,
        baseline=summary.baseline,
    )
