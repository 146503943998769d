"""The papers' methods with their published settings, one file per paper.

Each is a function that returns a :class:`~tempbalance.Recipe`; ``windows=FARMS()`` frees its alphas of the shape of the
layers. Its twin ``..._as_released`` follows the authors' code where that departs from the paper. Both list in
``deviations`` where they depart from what they follow.
"""

from __future__ import annotations

from tempbalance.recipes.alphadecay2025 import alphadecay, alphadecay_as_released
from tempbalance.recipes.llr2026 import llr, llr_as_released
from tempbalance.recipes.model_balancing2024 import (
    model_balancing,
    model_balancing_as_released,
    model_balancing_sciml,
    model_balancing_sciml_as_released,
)
from tempbalance.recipes.tempbalance2023 import tempbalance, tempbalance_as_released

__all__ = [
    "alphadecay",
    "alphadecay_as_released",
    "llr",
    "llr_as_released",
    "model_balancing",
    "model_balancing_as_released",
    "model_balancing_sciml",
    "model_balancing_sciml_as_released",
    "tempbalance",
    "tempbalance_as_released",
]
