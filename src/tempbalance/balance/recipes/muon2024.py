"""Factors by shape for Muon.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), kellerjordan.github.io/posts/muon; Liu
et al., "Muon is Scalable for LLM Training" (Moonlight, 2025, arXiv 2502.16982).
"""

from __future__ import annotations

from typing import Literal

from tempbalance.balance.assign import ByShape
from tempbalance.balance.recipe import Recipe
from tempbalance.errors import ArgumentError, check_type

__all__ = ["muon_factors"]


def muon_factors(*, variant: Literal["original", "match_rms"] = "original", width: int | None = None) -> Recipe:
    """Factors by shape for a Muon optimizer that has none.

    ``"original"``: ``max(1, fan_out / fan_in)^½`` (Jordan). ``"match_rms"``: in proportion to ``max(fan_in,
    fan_out)^½`` (Moonlight). ``torch.optim.Muon`` has both built in (``adjust_lr_fn``) and is refused. No spectrum is
    computed.

    Args:
        variant: The rule.
        width: For ``"match_rms"``: the larger side at which the factor is 1; None for the median fan-in of the model's
            layers.

    Returns:
        The recipe.

    Raises:
        ArgumentError: There is no such variant.

    Example:
        >>> muon_factors().assignment
        ByShape(rule='muon', optimizer='muon', width=None)
    """
    check_type("variant", variant, str)
    if variant not in ("original", "match_rms"):
        raise ArgumentError(f"variant must be 'original' or 'match_rms', got {variant!r}")
    return Recipe(
        name="muon_factors",
        source="Muon (Jordan et al. 2024), kellerjordan.github.io/posts/muon; Moonlight (2025, arXiv 2502.16982)",
        deviations=(
            "Moonlight's constant 0.2 is left to the learning rate.",
            "Parameters without a matrix keep the rate of the optimizer.",
        ),
        assignment=ByShape("muon" if variant == "original" else "muon_rms", "muon", width),
    )
