"""One HTML page, in one file, that needs no network: what all our pages have in common."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any

from tempbalance.errors import MissingExtraError

__all__ = ["render_page"]


def render_page(name: str, *, title: str, data: Any, **texts: str) -> str:
    """Put a page together from the files in ``report/assets``.

    Args:
        name: ``NAME.html`` is its body, ``NAME.js`` draws it.
        title: Title of the page.
        data: What the script draws: plain values, without NaN and Inf.
        **texts: Texts for the places in the body that are marked with ``$``.

    Returns:
        HTML with its style, its script, plotly.js and the data inside; nothing is loaded from anywhere.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # only when a report is asked for
    except ImportError as error:
        raise MissingExtraError("the HTML report needs plotly: pip install 'tempbalance[report]'") from error
    folder = resources.files("tempbalance.report") / "assets"

    def read(file: str) -> str:
        """A file of the page."""
        return (folder / file).read_text(encoding="utf-8")

    escaped = {key: html.escape(text) for key, text in texts.items()}
    return Template(read("shell.html")).substitute(
        title=html.escape(title),
        style=read("shell.css"),
        body=Template(read(f"{name}.html")).substitute(escaped),
        data=_script_json(data),
        plotly=get_plotlyjs(),
        script=read("shell.js") + read(f"{name}.js"),
    )


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no string in it can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
