"""A part of the cases of ``make fuzz``, in processes of their own: a crash or a hang ends only those."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize(("groups", "cases"), [(("files", "commands"), 800), (("saved", "arguments"), 1200)])
def test_hostile_files_and_arguments_are_answered_or_refused(groups, cases):
    command = [sys.executable, "-m", "fuzz.run", "--group", *groups, "--cases", "2000"]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert f"{cases} cases" in done.stdout
