"""Run the command line in this process, or in a new process that is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tempbalance.cli import main


def run(*arguments: object) -> int | str | None:
    """Return the exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(*map(str, arguments))
    return stopped.value.code


def check_error(capsys: pytest.CaptureFixture[str], *arguments: object, match: str) -> None:
    """Check that the command fails with one line that describes the error."""
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert match in err
    assert "Traceback" not in out + err


def started(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a process that can be interrupted."""
    # Background jobs of a shell ignore Ctrl-C, and so do the processes that they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, handler)


def interrupted(command: Sequence[str], partial: Path) -> tuple[int, str, int]:
    """Send Ctrl-C once a few rows are finished; return the exit status, the errors and the number of rows."""
    process = started(command)
    deadline = time.monotonic() + 300
    while process.poll() is None and not (partial.exists() and len(partial.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "the command ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, len(partial.read_text().splitlines()) - 1
