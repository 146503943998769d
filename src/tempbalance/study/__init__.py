"""Does balancing help on your task? A paired comparison of training methods on your own training function.

A *study* compares *candidates* (methods) with a *baseline* over seeds; each *trial* is one training run. A *control* is
a candidate that must not win, such as a recipe with its multipliers shuffled.
"""

from __future__ import annotations

from tempbalance.study.candidates import Candidate, Configuration, read_candidates
from tempbalance.study.method import Method, describe_methods, read_recipe
from tempbalance.study.methods.hooks import HOOKS, Batch, Training, TrainingMethod, outputs_of
from tempbalance.study.multiplier_search import search
from tempbalance.study.paired import FEWEST, Paired, holm, paired
from tempbalance.study.runner import count_trials, run
from tempbalance.study.search_result import SearchResult, SearchTrial
from tempbalance.study.study_folder import collect_folder, restore_folder
from tempbalance.study.summary import Row, Summary
from tempbalance.study.task import Task, Trial, load_task

__all__ = [
    "FEWEST",
    "HOOKS",
    "Batch",
    "Candidate",
    "Configuration",
    "Method",
    "Paired",
    "Row",
    "SearchResult",
    "SearchTrial",
    "Summary",
    "Task",
    "Training",
    "TrainingMethod",
    "Trial",
    "collect_folder",
    "count_trials",
    "describe_methods",
    "holm",
    "load_task",
    "outputs_of",
    "paired",
    "read_candidates",
    "read_recipe",
    "restore_folder",
    "run",
    "search",
]
