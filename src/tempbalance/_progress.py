"""A progress bar on the terminal; silent when piped."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Protocol

__all__ = ["Advance", "progress_bar"]


class Advance(Protocol):
    """Takes how many more pieces are done, and what is being done if that is to be said anew."""

    def __call__(self, count: int, description: str | None = None) -> None:
        """Move on."""


@contextlib.contextmanager
def progress_bar(description: str, total: int, wanted: bool = True) -> Generator[Advance]:
    """Show how far long work has come, on standard error, and only where that is a terminal.

    Args:
        description: What is being done.
        total: How many pieces there are.
        wanted: Whether to show anything at all.

    Yields:
        A function that takes how many more pieces are done, and a new description if there is one.

    Example:
        >>> with progress_bar("counting", total=3) as advance:
        ...     advance(3)
    """
    if not wanted:
        yield lambda count, description=None: None
        return
    from rich.console import Console  # only when something is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count, description=None: bar.update(task, advance=count, description=description)
