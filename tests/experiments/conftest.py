"""The studies import each other as scripts do, from their own folder."""

import importlib
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return EXPERIMENTS


@pytest.fixture
def baselines(experiments):
    return importlib.import_module("baselines")
