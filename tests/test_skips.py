"""Runs with ``-p strict_skips`` fail on a skip that is not in the list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strict_skips import ALLOWED, allowed_reasons

TESTS = Path(__file__).parent
LISTED = (
    "import pytest\n\n@pytest.mark.skip(reason='needs a GPU')\ndef test_a():\n    pass\n\ndef test_b():\n    pass\n"
)
WHOLE_FILE = "import pytest\n\npytest.importorskip('no_such_package')\n\ndef test_c():\n    pass\n"
IN_A_TEST = "import pytest\n\ndef test_d():\n    pytest.skip('because')\n"


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "strict_skips", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "--numprocesses", "1")], ids=["one process", "workers"])
def test_a_skip_that_is_not_listed_fails_the_run(tmp_path, workers):
    if workers:
        pytest.importorskip("xdist")
    for name, text in {"test_listed.py": LISTED, "test_file.py": WHOLE_FILE, "test_one.py": IN_A_TEST}.items():
        (tmp_path / name).write_text(text)
    result = run(tmp_path, *workers)
    assert result.returncode == 1
    assert "allowed_skips.txt: test_file.py: could not import 'no_such_package'" in result.stdout
    assert "allowed_skips.txt: test_one.py::test_d: because" in result.stdout
    assert "test_listed" not in result.stdout


def test_listed_skips_pass(tmp_path):
    (tmp_path / "test_listed.py").write_text(LISTED)
    result = run(tmp_path)
    assert (result.returncode, "1 passed, 1 skipped" in result.stdout) == (0, True)


def test_each_entry_of_the_list_says_why():
    assert "needs a GPU" in allowed_reasons(ALLOWED.read_text("utf-8"))
    with pytest.raises(pytest.UsageError, match="why it is accepted"):
        allowed_reasons("needs a GPU\n")
