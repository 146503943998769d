"""Routers of experts, found from qualified names."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["find_routers"]

_ROUTER = re.compile(r"(\w+_)?router|(\w+_)?experts?_gate")
_GATE = re.compile(r"gates?|wg")
_EXPERTS = re.compile(r"(\w+_)?experts")


def find_routers(names: Iterable[str]) -> set[str]:
    """Return the weights that choose the experts of a token: named ``router``, or ``gate`` next to ``experts``.

    Example:
        >>> find_routers(["mlp.gate.weight", "mlp.experts.0.gate.weight", "mlp.experts.0.up.weight"])
        {'mlp.gate.weight'}
    """
    split = {name: name.partition(":")[0].split(".") for name in names}
    homes = {tuple(parts[:i]) for parts in split.values() for i, part in enumerate(parts) if _EXPERTS.fullmatch(part)}

    def is_router(parts: list[str]) -> bool:
        """Return whether a component is a router, or a gate in a module that has experts."""
        return any(
            _ROUTER.fullmatch(part) or (_GATE.fullmatch(part) and tuple(parts[:i]) in homes)
            for i, part in enumerate(parts)
        )

    return {name for name, parts in split.items() if is_router(parts)}
