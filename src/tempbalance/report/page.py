"""The frame of all HTML reports: one file that needs no network."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import lzma
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import Any, NamedTuple

from tempbalance._text import encodable
from tempbalance.report.figures.figure_style import Spec
from tempbalance.types import Finding

__all__ = [
    "MISSING",
    "Cell",
    "Html",
    "escaped",
    "findings_html",
    "fragment",
    "in_words",
    "model_name",
    "number",
    "render_page",
    "table_html",
]

MISSING = "–"
_SNAPSHOT = re.compile(r"models--(.+?)--(.+?)[/\\]snapshots[/\\]")
_CALL = re.compile(r"(\w+)\((.*)\)")
_GENERIC = re.compile(r"(pytorch_)?model|adapter_model|weights|final|best|last|checkpoint([-_]\d+)?|consolidated")


class Html(str):
    """A text that is HTML; every other text is escaped."""

    __slots__ = ()


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    note: str = ""  # shown when the mouse is over it; the cell is then in the colour of a warning


def render_page(  # noqa: PLR0913  all but the name by keyword
    name: str,
    *,
    kicker: str,
    title: str,
    source: str,
    figures: Mapping[str, Spec],
    settings: Mapping[str, Any],
    layers: Sequence[Any] = (),
    **parts: str,
) -> str:
    """Return one HTML file from ``report/assets/NAME.html`` and its parts, with style, script, plotly.js and data."""
    # ``kicker`` is the line above the heading ``title``, and ``source`` what the page is about, in full. ``figures``
    # are by the id of their element. ``layers`` are texts and figure of each row of a table to select from.
    return Template(_asset("shell.html").decode()).substitute(
        kicker=escaped(kicker),
        title=escaped(title),
        path=escaped("" if source == title else source),
        style=_asset("shell.css").decode(),
        body=fragment(name, **parts),
        settings=Html(
            "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(in_words(each))}</dd>" for key, each in settings.items())
        ),
        data=_script_json({"figures": figures, "layers": layers}),
        licence=_asset("plotly-LICENSE.txt").decode(),
        plotly=_plotly(),
        script=_asset("shell.js").decode(),
    )


def fragment(name: str, **parts: str) -> Html:
    """Return ``report/assets/NAME.html`` with its parts."""
    template = Template(_asset(f"{name}.html").decode())
    return Html(template.substitute({key: escaped(text) for key, text in parts.items()}))


def _asset(file: str) -> bytes:
    return (resources.files("tempbalance.report") / "assets" / file).read_bytes()


@functools.cache
def _plotly() -> str:
    """Return plotly.js as gzip, which browsers can read; the package has it as xz, which is smaller."""
    script = lzma.decompress(_asset("plotly-basic.min.js.xz"))
    return base64.b64encode(gzip.compress(script, mtime=0)).decode()


def escaped(text: str) -> str:
    """Return a text as HTML."""
    return text if isinstance(text, Html) else html.escape(encodable(text))


def model_name(source: str) -> str:
    """Return a short name for a source: the hub id, or the end of a path.

    Example:
        >>> model_name("/data/llama-7b"), model_name("runs/a/checkpoint-500"), model_name("org/name")
        ('llama-7b', 'a/checkpoint-500', 'org/name')
    """
    if snapshot := _SNAPSHOT.search(source):
        return f"{snapshot[1]}/{snapshot[2]}"
    parts = [part for part in PurePath(source.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    if len(parts) < 2 or (len(parts) == 2 and source == "/".join(parts) and "." not in parts[1]):  # noqa: PLR2004
        return source if len(parts) != 1 else parts[0]
    generic = _GENERIC.fullmatch(parts[-1].partition(".")[0]) is not None
    return "/".join(parts[-2:] if generic else parts[-1:])


def findings_html(findings: Iterable[Finding]) -> Html:
    """Return findings as a list, each with its next step; a sentence if there are none."""
    items = []
    for finding in findings:
        step = f'<p class="facts">Next: {escaped(finding.next_step)}.</p>' if finding.next_step else ""
        severity, text = finding.severity.value, escaped(finding.message)
        items.append(f'<li class="{severity}" title="{escaped(finding.kind)}"><b>{severity}</b> {text}.{step}</li>')
    return Html(f'<ul class="findings">{"".join(items) or "<li>No finding.</li>"}</ul>')


def in_words(value: Any) -> str:
    """Return the value of a setting without the syntax of Python.

    Example:
        >>> in_words({"include": ["*"], "exclude": [], "split": True}), in_words("Hill(min_eigenvalues=10, share=0.5)")
        ('include *, exclude none, split yes', 'Hill, min eigenvalues 10, share 0.5')
    """
    if call := _CALL.fullmatch(value) if isinstance(value, str) else None:
        return ", ".join(filter(None, (call[1], call[2].replace("=", " ").replace("_", " "))))
    if value is None or (isinstance(value, (list, tuple, Mapping)) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value))
    return str(value)


def number(value: float | None, form: str = ".2f") -> str:
    """Format a number; a dash if it is missing or not finite."""
    return format(value, form) if value is not None and math.isfinite(value) else MISSING


def table_html(
    columns: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, text: Sequence[str], groups: Sequence[str] = ()
) -> Html:
    """Return the head and the body of a table that can be sorted.

    The columns in ``text`` are texts, at the left; the others are numbers. ``groups`` has the group of each row, to
    filter by.
    """
    kinds = [' class="text"' if column in text else "" for column in columns]
    pairs = zip(columns, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{escaped(column)}</th>' for column, kind in pairs)
    lines = []
    for index, row in enumerate(rows):
        group = f' data-group="{escaped(groups[index])}"' if groups else ""
        cells = "".join(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True))
        lines.append(f'<tr data-index="{index}"{group}>{cells}</tr>')
    return Html(f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>")


def _cell(cell: str | Cell, kind: str) -> str:
    if isinstance(cell, Cell) and cell.note:
        name = "text odd" if kind else "odd"
        return f'<td class="{name}" title="{escaped(cell.note)}">{escaped(cell.text)}</td>'
    return f"<td{kind}>{escaped(cell.text if isinstance(cell, Cell) else cell)}</td>"


def _script_json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no string can end the element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
