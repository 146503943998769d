"""Evaluation of a causal language model: token files, perplexity, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from tempbalance.compress.evaluation.causal_lm import load_causal_lm
from tempbalance.compress.evaluation.harness import evaluate
from tempbalance.compress.evaluation.likelihood import Perplexity, perplexity
from tempbalance.compress.evaluation.tokens import Calibration, draw_calibration, load_tokens

__all__ = [
    "Calibration",
    "Perplexity",
    "draw_calibration",
    "evaluate",
    "load_causal_lm",
    "load_tokens",
    "perplexity",
]
