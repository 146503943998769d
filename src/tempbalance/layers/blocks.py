"""Transformer blocks (and other repeated units), found from qualified names.

``encoder.layer.0.attention.self.query.weight`` is in ``encoder.layer.0``. The block is the first component ``block``,
``blocks`` or ``h`` followed by a number (Swin's ``layers.0.blocks.1``), else the first component followed by a number.
A number with a single layer (``features.3.weight``) is not a block, nor is an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

__all__ = ["block_namer"]

_BLOCKS = frozenset({"block", "blocks", "h"})
_NOT_BLOCKS = frozenset({"experts"})


def _numbered(parts: list[str]) -> Iterator[int]:
    """Yield the positions of number components that could name a block, the preferred ones first."""
    found = [i for i in range(1, len(parts)) if parts[i].isdigit() and parts[i - 1] not in _NOT_BLOCKS]
    yield from (i for i in found if parts[i - 1] in _BLOCKS)
    yield from found


def block_namer(names: Iterable[str], is_container: Callable[[str], bool] | None = None) -> Callable[[str], str | None]:
    """Return the function from a qualified parameter name to the name of its block.

    Args:
        names: Qualified names of all parameters of the model.
        is_container: Function that returns whether the module of a name is a list of modules; None if only names are
            known.

    Returns:
        A function from a parameter name to a block name, or to None outside of blocks.

    Example:
        >>> block_of = block_namer(["h.0.attn.weight", "head.0.weight"])
        >>> block_of("h.0.attn.weight"), block_of("head.0.weight")
        ('h.0', None)
    """
    deeper: set[str] = set()
    for name in names:
        parts = name.split(".")
        deeper.update(".".join(parts[: i + 1]) for i in _numbered(parts) if i < len(parts) - 2)

    def block_of(name: str) -> str | None:
        """Return the outermost block of a parameter."""
        parts = name.split(".")
        for i in _numbered(parts):
            path = ".".join(parts[: i + 1])
            if path in deeper and (is_container is None or is_container(".".join(parts[:i]))):
                return path
        return None

    return block_of
