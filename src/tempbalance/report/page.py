"""The shell of all HTML reports: one file that needs no network."""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from string import Template
from typing import Any

from tempbalance._text import encodable

__all__ = ["render_page"]


def render_page(name: str, *, title: str, data: Any, **texts: str) -> str:
    """Build one HTML file from the body and script ``report/assets/NAME.*``, with finite data and escaped texts."""
    folder = resources.files("tempbalance.report") / "assets"

    def read(file: str) -> str:
        """Return the text of an asset."""
        return (folder / file).read_text(encoding="utf-8")

    escaped = {key: html.escape(encodable(text)) for key, text in texts.items()}
    return Template(read("shell.html")).substitute(
        title=html.escape(encodable(title)),
        style=read("shell.css"),
        body=Template(read(f"{name}.html")).substitute(escaped),
        data=_script_json(data),
        licence=read("plotly-LICENSE.txt"),
        plotly=base64.b64encode((folder / "plotly-basic.min.js.gz").read_bytes()).decode(),
        script=read("shell.js") + read(f"{name}.js"),
    )


def _script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no string can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
