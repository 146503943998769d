"""A progress bar on standard error; silent when piped."""

from __future__ import annotations

import contextlib
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count, description=None: bar.update(task, advance=count, description=description)


def show_line(text: str, wanted: bool = True) -> None:
    """Print a line of printable text on standard error, if it is a terminal."""
    if wanted:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            console.print(text, markup=False, highlight=False)
