"""What ``tempbalance demo`` shows: a damaged transformer, fine-tuning on digits, and a small language model."""

from __future__ import annotations

from tempbalance.demo.damaged import DAMAGED, analyze_damaged
from tempbalance.demo.digits import DigitsNet, NewDigits, Settings, Start, pretrain_digits
from tempbalance.demo.finetuning import ARMS, Outcome, SeedResult, finetune_digits
from tempbalance.demo.language import CANDIDATES, train_language_model
from tempbalance.demo.printing import print_language, print_outcome, to_json

__all__ = [
    "ARMS",
    "CANDIDATES",
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
    "print_language",
    "print_outcome",
    "to_json",
    "train_language_model",
]
