"""The studies, a module each: claims of papers, and the contests that test them."""

from __future__ import annotations

import importlib

from evidence.study import Study

NAMES = ("digits", "text", "pde", "vision", "language")


def load_study(name: str) -> Study:
    """A study by its name."""
    study: Study = importlib.import_module(f"studies.{name}").STUDY
    return study
