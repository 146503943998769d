"""Which way of balancing, if any, helps *your* training? A paired comparison on your own training function."""

from __future__ import annotations

from tempbalance.arena.contenders import Contender, Trial, read_contenders
from tempbalance.arena.methods import Method
from tempbalance.arena.paired import FEWEST, Paired, holm, paired

__all__ = ["FEWEST", "Contender", "Method", "Paired", "Trial", "holm", "paired", "read_contenders"]
