"""Which way of balancing, if any, helps *your* training? A paired comparison on your own training function."""

from __future__ import annotations

from tempbalance.study.candidates import Candidate, Trial, read_candidates
from tempbalance.study.methods import Method
from tempbalance.study.paired import FEWEST, Paired, holm, paired

__all__ = ["FEWEST", "Candidate", "Method", "Paired", "Trial", "holm", "paired", "read_candidates"]
