"""A comparison as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tempbalance._files import dumps
from tempbalance.report.page import render_page
from tempbalance.study.summary import Summary

__all__ = ["render_summary"]


def render_summary(summary: Summary, task: str, settings: Mapping[str, Any]) -> str:
    """Render a comparison as one page.

    Args:
        summary: The comparison.
        task: What was compared on.
        settings: How it was made, for the end of the page.

    Returns:
        HTML; nothing is loaded from anywhere.
    """
    data = summary.to_json() | {"settings": {key: str(value) for key, value in settings.items()}}
    return render_page(
        "study",
        title=f"Arena: {task}",
        data=json.loads(dumps(data)),  # null for NaN
        task=task,
        recommendation=summary.recommendation,
        baseline=summary.baseline,
    )
