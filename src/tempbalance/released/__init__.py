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
from tempbalance.spectra.windows import FARMSAsReleased
from tempbalance.tail.hill import HillAsReleased
from tempbalance.tail.ks import KSAsReleased
from tempbalance.tail.peak import PeakAsReleased

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
