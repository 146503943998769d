"""The folder ``study_before``, an interrupted study of the version before the packages were rearranged, is resumed."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import tempbalance as tb

BEFORE = Path(__file__).parent / "study_before"
METHODS = ["model_balancing_sciml", "llr:high=3"]


@pytest.fixture
def folder(tmp_path):
    """Return a copy, as written with the versions of torch and numpy that are installed here."""
    copy = shutil.copytree(BEFORE, tmp_path / "study_before")
    settings = json.loads((copy / "settings.json").read_text())
    versions = {"tempbalance": version("tempbalance"), "torch": torch.__version__, "numpy": np.__version__}
    assert list(settings["settings"]["versions"]) == list(versions)
    settings["settings"]["versions"] = versions
    (copy / "settings.json").write_text(json.dumps(settings))
    (copy / "task.py").rename(tmp_path / "task.py")
    return copy


def test_only_the_missing_trial_of_a_study_of_the_version_before_is_trained(folder):
    trials = {path: path.read_bytes() for path in folder.rglob("seed-*.json")}
    summary = tb.study.run(folder.parent / "task.py", METHODS, folder, seeds=2, progress=False)
    now = {path: path.read_bytes() for path in folder.rglob("seed-*.json")}
    assert {path: now[path] for path in trials} == trials
    assert [path.relative_to(folder).as_posix() for path in now.keys() - trials.keys()] == [
        "runs/llr_high=3-3cde280a/seed-1.json"
    ]
    assert [row.gain.mean for row in summary.rows if row.gain] == pytest.approx([0.16, 0.05])


def test_a_study_of_other_versions_of_torch_is_refused_with_both_versions(folder):
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["versions"]["torch"] = "1.0"
    (folder / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(tb.errors.StudyError, match=r"'torch': '1\.0'.*Choose another folder"):
        tb.study.run(folder.parent / "task.py", METHODS, folder, seeds=2, progress=False)
