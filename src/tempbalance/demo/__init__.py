"""What ``tempbalance demo`` trains: small enough for any machine, on data that anyone has."""

from __future__ import annotations

from tempbalance.demo.arms import ARMS, Outcome, SeedResult, finetune_digits
from tempbalance.demo.digits import DigitsNet, NewDigits, Settings, Start, pretrain_digits
from tempbalance.demo.printing import print_outcome, to_json

__all__ = [
    "ARMS",
    "DigitsNet",
    "NewDigits",
    "Outcome",
    "SeedResult",
    "Settings",
    "Start",
    "finetune_digits",
    "pretrain_digits",
    "print_outcome",
    "to_json",
]
