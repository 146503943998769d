"""A progress bar on the terminal; silent when piped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(description: str, total: int, wanted: bool = True) -> Generator[Callable[[int], None]]:
    """Show how far long work has come, on standard error, and only where that is a terminal.

    Args:
        description: What is being done.
        total: How many pieces there are.
        wanted: Whether to show anything at all.

    Yields:
        A function that takes how many more pieces are done.

    Example:
        >>> with progress_bar("counting", total=3) as advance:
        ...     advance(3)
    """
    if not wanted:
        yield lambda _count: None
        return
    from rich.console import Console  # only when something is shown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
