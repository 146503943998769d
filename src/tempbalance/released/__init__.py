"""Replays of the code released with the papers, where it departs from them: for published numbers, and nothing else."""

from __future__ import annotations

from tempbalance.balance.assign.by_alpha import RankAsReleased
from tempbalance.balance.recipes.alphadecay2025 import alphadecay_as_released
from tempbalance.balance.recipes.llr2026 import llr_as_released
from tempbalance.balance.recipes.model_balancing2024 import (
    model_balancing_as_released,
    model_balancing_sciml_as_released,
)
from tempbalance.balance.recipes.tempbalance2023 import tempbalance_as_released
from tempbalance.spectra.farms_as_released import FARMSAsReleased
from tempbalance.tail.as_released import HillAsReleased, KSAsReleased, PeakAsReleased

__all__ = [
    "FARMSAsReleased",
    "HillAsReleased",
    "KSAsReleased",
    "PeakAsReleased",
    "RankAsReleased",
    "alphadecay_as_released",
    "llr_as_released",
    "model_balancing_as_released",
    "model_balancing_sciml_as_released",
    "tempbalance_as_released",
]
