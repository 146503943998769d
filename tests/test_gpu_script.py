"""The checks of ``benchmarks/gpu.py`` run on a CPU, at small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_rehearsal_passes_and_continues_with_what_is_not_done(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--cpu", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads(out.read_text())
    assert set(first["checks"]) == {
        *("correctness", "7B", "float32", "batched", "delayed", "WeightWatcher", "FARMS", "solvers")
    }
    assert all(check["ok"] or "not installed" in check["left_out"] for check in first["checks"].values())
    first["checks"]["batched"] = {"ok": False, "failed": "interrupted"}
    out.write_text(json.dumps(first))
    assert run("--cpu", "--out", out).returncode == 0
    second = json.loads(out.read_text())
    assert second["checks"]["batched"]["ok"]
    assert second["checks"]["correctness"] == first["checks"]["correctness"]
