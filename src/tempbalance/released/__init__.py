"""Replays of the code released with the papers, where it departs from them. Use them to reproduce published numbers."""

from __future__ import annotations

from tempbalance.released.farms import FARMSAsReleased
from tempbalance.released.freezing import spectrum_snr, spectrum_unfrozen
from tempbalance.released.recipes_as_released import (
    RankAsReleased,
    alphadecay_as_released,
    llr_as_released,
    model_balancing_as_released,
    model_balancing_sciml_as_released,
    tempbalance_as_released,
)
from tempbalance.released.tails import HillAsReleased, KSAsReleased, PeakAsReleased

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
    "spectrum_snr",
    "spectrum_unfrozen",
    "tempbalance_as_released",
]
