"""Multipliers that are given by role, name or file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tempbalance.balance.assign import ByRole, Fixed
from tempbalance.balance.recipe import Recipe

__all__ = ["by_role", "fixed"]


def by_role(multipliers: Mapping[str, float]) -> Recipe:
    """A learning rate for each role that is given by hand.

    Args:
        multipliers: Multiplier by role, such as ``{"v": 0.25, "o": 0.25}``; other roles keep the base rate.

    Returns:
        The recipe. No spectrum is computed.

    Example:
        >>> by_role({"v": 0.25, "norm": 3}).assignment.multipliers
        {'v': 0.25, 'norm': 3.0}
    """
    return Recipe(name="by_role", assignment=ByRole(multipliers))


def fixed(multipliers: Mapping[str, float] | str | os.PathLike[str]) -> Recipe:
    """Learning rates by name or role that are given by hand or in a file.

    Args:
        multipliers: Multiplier by pattern, or a file of them: see :class:`~tempbalance.balance.assign.Fixed`.

    Returns:
        The recipe. No spectrum is computed.

    Example:
        >>> fixed({"*.v_proj.*": 0.25, "role:norm": 3}).assignment.multipliers
        {'*.v_proj.*': 0.25, 'role:norm': 3.0}
    """
    given = Fixed.load(multipliers) if isinstance(multipliers, (str, os.PathLike)) else Fixed(multipliers)
    return Recipe(name="fixed", assignment=given)
