"""The length of an epoch, which recipes that count in epochs ask a trainer for."""

from __future__ import annotations

from tempbalance.errors import BalanceError

__all__ = ["check_epoch"]


def check_epoch(steps: int | None) -> int:
    """Return the optimizer steps in an epoch.

    Args:
        steps: What the trainer knows; None if its training data has no length.

    Returns:
        ``steps``.

    Raises:
        BalanceError: It is None.

    Example:
        >>> check_epoch(12)
        12
    """
    if steps is None:
        raise BalanceError(
            "the recipe counts in epochs, but the training data has no length: use a recipe that counts in steps, such "
            "as dataclasses.replace(recipe, every=tempbalance.Every(steps=100))"
        )
    return steps
