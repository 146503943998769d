"""What ``tempbalance demo`` trains: small enough for any machine, on data that anyone has."""

from __future__ import annotations

from tempbalance.demo.digits import ARMS, DigitsNet, Outcome, SeedResult, Settings, finetune_digits
from tempbalance.demo.show import print_outcome, to_json

__all__ = [
    "ARMS",
    "DigitsNet",
    "Outcome",
    "SeedResult",
    "Settings",
    "finetune_digits",
    "print_outcome",
    "to_json",
]
