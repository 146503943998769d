"""The style of all figures: matplotlib, as SVG that depends on the numbers only."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")


def render(draw: Callable[[Figure], None], width: float, height: float, *, name: str, title: str | None = None) -> str:
    """Draw a figure.

    Args:
        draw: Draws on an empty figure.
        width: Inches.
        height: Inches.
        name: Seed of the identifiers in the SVG.
        title: Title of the document, by default ``name``.

    Returns:
        SVG.
    """
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": title or name})
    return file.getvalue().decode()
