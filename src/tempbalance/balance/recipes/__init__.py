"""The papers' methods with their published settings, one file per paper.

Each is a function that returns a :class:`~tempbalance.Recipe`, which lists in ``deviations`` where it departs from what
it follows. By alpha: ``windows=FARMS()`` frees alphas of the shape of the layers, and a twin ``..._as_released``
follows the authors' code where that departs from the paper. By depth, without spectra: ``layerwise_decay``,
``slow_learner`` and ``gradual_unfreezing``.
"""

from __future__ import annotations

from tempbalance.balance.recipes.alphadecay2025 import alphadecay, alphadecay_as_released
from tempbalance.balance.recipes.beit2021 import layerwise_decay
from tempbalance.balance.recipes.llr2026 import llr, llr_as_released
from tempbalance.balance.recipes.model_balancing2024 import (
    model_balancing,
    model_balancing_as_released,
    model_balancing_sciml,
    model_balancing_sciml_as_released,
)
from tempbalance.balance.recipes.slca2023 import slow_learner
from tempbalance.balance.recipes.tempbalance2023 import tempbalance, tempbalance_as_released
from tempbalance.balance.recipes.ulmfit2018 import gradual_unfreezing

__all__ = [
    "alphadecay",
    "alphadecay_as_released",
    "gradual_unfreezing",
    "layerwise_decay",
    "llr",
    "llr_as_released",
    "model_balancing",
    "model_balancing_as_released",
    "model_balancing_sciml",
    "model_balancing_sciml_as_released",
    "slow_learner",
    "tempbalance",
    "tempbalance_as_released",
]
