"""The papers' methods with their published settings, one file per paper.

Each is a function that returns a :class:`~tempbalance.Recipe`, whose ``deviations`` list the differences from the
paper. By alpha: ``tempbalance``, ``model_balancing``, ``model_balancing_sciml``, ``alphadecay`` and ``llr``;
``windows=FARMS()`` makes alpha independent of the shape of a layer, and ``tempbalance.released`` contains the same
methods as in the authors' code. Without spectra, by depth: ``layerwise_decay``, ``slow_learner`` and
``gradual_unfreezing``; by role: ``blockwise_lr``; by shape: ``mup`` and ``muon_factors``; by hand: ``by_role`` and
``fixed``.
"""

from __future__ import annotations

from tempbalance.balance.recipes.alphadecay2025 import alphadecay
from tempbalance.balance.recipes.beit2021 import layerwise_decay
from tempbalance.balance.recipes.blockwise_lr2025 import blockwise_lr
from tempbalance.balance.recipes.by_hand import by_role, fixed
from tempbalance.balance.recipes.llr2026 import llr
from tempbalance.balance.recipes.model_balancing2024 import model_balancing, model_balancing_sciml
from tempbalance.balance.recipes.muon2024 import muon_factors
from tempbalance.balance.recipes.mup2022 import mup
from tempbalance.balance.recipes.slca2023 import slow_learner
from tempbalance.balance.recipes.tempbalance2023 import tempbalance
from tempbalance.balance.recipes.ulmfit2018 import gradual_unfreezing

__all__ = [
    "alphadecay",
    "blockwise_lr",
    "by_role",
    "fixed",
    "gradual_unfreezing",
    "layerwise_decay",
    "llr",
    "model_balancing",
    "model_balancing_sciml",
    "muon_factors",
    "mup",
    "slow_learner",
    "tempbalance",
]
