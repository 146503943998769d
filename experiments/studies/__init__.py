"""The experiments, a module each: claims of papers, and the studies that test them."""

from __future__ import annotations

import importlib

from claims import Experiment

NAMES = ("digits", "text", "pde", "vision", "language")


def load_experiment(name: str) -> Experiment:
    """Load an experiment by its name."""
    experiment: Experiment = importlib.import_module(f"studies.{name}").EXPERIMENT
    return experiment
