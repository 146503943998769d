"""What the integrations of trainers do with their arguments: the recipe, and the length of an epoch."""

from __future__ import annotations

from tempbalance.balance import Recipe
from tempbalance.balance.validation import check_recipe
from tempbalance.errors import BalanceError

__all__ = ["check_epoch", "to_recipe"]


def to_recipe(recipe: Recipe | str) -> Recipe:
    """Return a recipe that may be given by name, with parameters as in ``tempbalance study``.

    Raises:
        BalanceError: It is neither a recipe nor a text.
        StudyError: There is no recipe of that name, or it has no such parameter.

    Example:
        >>> to_recipe("model_balancing:unit=layer").unit
        'layer'
    """
    if isinstance(recipe, str):
        from tempbalance.study import read_recipe

        return read_recipe(recipe)
    check_recipe(recipe)
    return recipe


def check_epoch(steps: int | None, reason: str = "the training data has no length") -> int:
    """Return the optimizer steps in an epoch; a BalanceError with the reason if the trainer does not know them."""
    if steps is None:
        raise BalanceError(
            f"the recipe counts in epochs, but {reason}: use a recipe that counts in steps, such as "
            "dataclasses.replace(recipe, every=tempbalance.Every(steps=100))"
        )
    return steps
