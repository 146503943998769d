"""A progress bar on standard error, or in the output of a notebook; silent when piped."""

from __future__ import annotations

import contextlib
import html
import sys
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["progress_bar", "show_line"]


@contextlib.contextmanager
def progress_bar(description: str, total: int, wanted: bool = True) -> Generator[Callable[..., Any]]:
    """Yield ``advance(count, description=None)``, which adds finished items and may change the description."""
    if not wanted:
        yield lambda count, description=None: None
        return
    from rich.console import Console  # loaded when a bar is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_jupyter:
        yield _notebook_bar(description, total)
        return
    if not console.is_terminal:  # a Progress that is disabled prints an empty line before rich 14.3
        yield lambda count, description=None: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count, description=None: bar.update(task, advance=count, description=description)


def _notebook_bar(description: str, total: int) -> Callable[..., Any]:
    """Show a bar in the output of a cell, without widgets; return the function that advances it."""
    from IPython.display import HTML, display

    done = 0

    def view() -> Any:
        """Return the bar as it is now."""
        bar = f"<progress max='{total}' value='{done}'></progress>"
        return HTML(f"<div>{html.escape(description)} {bar} {done} of {total}</div>")

    handle = display(view(), display_id=True)

    def advance(count: int, text: str | None = None) -> None:
        """Add finished items, and change the description."""
        nonlocal done, description
        done, description = done + count, text or description
        handle.update(view())

    return advance


def show_line(text: str, wanted: bool = True) -> None:
    """Print a line of printable text on standard error, if it is a terminal or in a notebook."""
    if wanted:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_jupyter:
            print(text, file=sys.stderr)
        elif console.is_terminal:
            console.print(text, markup=False, highlight=False)
