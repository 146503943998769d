"""Files in ``files_before``, which the version before the packages were rearranged wrote, are read by this one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.types import Status

BEFORE = Path(__file__).parent / "files_before"


@pytest.mark.parametrize("name", ["hill", "ks", "farms"])
def test_an_analysis_of_the_version_before_loads_and_is_saved_with_the_same_bytes(name, tmp_path):
    """Except for the findings, which older versions ignore."""
    analysis = tb.Analysis.load(BEFORE / f"{name}.json")
    assert [layer.status for layer in analysis.layers] == [Status.OK] * 3 + [Status.ZERO]
    assert math.isnan(analysis.layers[3].alpha)
    assert analysis.skipped == [("4.weight", "600 of 600 weights are NaN or Inf")]
    analysis.save(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    found = [(finding["kind"], finding["layers"]) for finding in again.pop("findings")]
    assert found[:2] == [("nan", ["4.weight"]), ("constant", ["3.weight"])]
    assert f"{json.dumps(again)}\n".encode() == (BEFORE / f"{name}.json").read_bytes()


def test_analyses_of_the_version_before_are_compared_allocated_and_rendered(tmp_path):
    analysis = tb.Analysis.load(BEFORE / "hill.json")
    assert [row.delta for row in tb.compare(analysis, analysis).layers[:3]] == [0.0, 0.0, 0.0]
    sparsities = [*tb.allocate_sparsity(analysis, 0.5, unit="layer", method="alpha").values()]
    assert sparsities[:3] == sorted(sparsities[:3])
    analysis.save(tmp_path / "report.html")
    assert "0.weight" in (tmp_path / "report.html").read_text()


def test_an_analysis_that_the_version_before_left_unfinished_is_started_afresh(tmp_path, caplog):
    """Its header does not tell a file from another one of the same size and time."""
    path, partial = tmp_path / "model.safetensors", tmp_path / "interrupted.partial"
    save_file({f"{i}.weight": torch.randn(20, 30) for i in range(3)}, path)
    partial.write_bytes((BEFORE / "interrupted.partial").read_bytes())
    resumed = tb.analyze(path, resume=partial, progress=False)
    assert "starting afresh" in caplog.text
    assert repr(resumed.layers) == repr(tb.analyze(path).layers)
    assert not partial.exists()
