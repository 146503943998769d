"""What ``tempbalance demo`` shows: a damaged transformer, and the fine-tuning of a small network on digits."""

from __future__ import annotations

from tempbalance.demo.damaged import DAMAGED, analyze_damaged
from tempbalance.demo.digits import DigitsNet, NewDigits, Settings, Start, pretrain_digits
from tempbalance.demo.finetuning import ARMS, Outcome, SeedResult, finetune_digits
from tempbalance.demo.printing import print_outcome, to_json

__all__ = [
    "ARMS",
    "DAMAGED",
    "DigitsNet",
    "NewDigits",
    "Outcome",
    "SeedResult",
    "Settings",
    "Start",
    "analyze_damaged",
    "finetune_digits",
    "pretrain_digits",
    "print_outcome",
    "to_json",
]
