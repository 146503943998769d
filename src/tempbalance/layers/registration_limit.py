"""Stop a module that grows while it is built from a file, before its memory is used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

__all__ = ["registration_limit"]


@contextlib.contextmanager
def registration_limit(most: int, kinds: tuple[str, ...], cost: Callable[[Any], int], message: str) -> Iterator[None]:
    """Raise a ValueError when what this thread registers in modules inside the block costs more than a limit.

    What counts is a ``"module"``, ``"parameter"`` or ``"buffer"``; ``cost`` returns the cost of one, which may be None.

    Raises:
        ValueError: The limit is reached.

    Example:
        >>> with registration_limit(1, ("module",), lambda _: 1, "too many"):
        ...     nn.Sequential(nn.ReLU(), nn.ReLU())
        Traceback (most recent call last):
        ValueError: too many
    """
    thread, left = threading.get_ident(), most

    def registered(_: nn.Module, __: str, value: Any) -> None:
        nonlocal left
        if threading.get_ident() == thread:
            left -= cost(value)
            if left < 0:
                raise ValueError(message)

    handles = [getattr(nn.modules.module, f"register_module_{kind}_registration_hook")(registered) for kind in kinds]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
