"""The fine-tuning of ``tempbalance demo``: a small network on the handwritten digits of scikit-learn."""

from __future__ import annotations

from tempbalance.demo.digits import DigitsNet, NewDigits, Settings, Start, pretrain_digits
from tempbalance.demo.finetuning import ARMS, Outcome, SeedResult, finetune_digits
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
