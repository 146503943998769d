"""The command line, run in this process, or in one of its own that is interrupted."""

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
    """Its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(*map(str, arguments))
    return stopped.value.code


def check_error(capsys: pytest.CaptureFixture[str], *arguments: object, match: str) -> None:
    """It ends with one line that says what was wrong."""
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert match in err
    assert "Traceback" not in out + err


def interrupted(command: Sequence[str], partial: Path) -> tuple[int, str, int]:
    """Ctrl-C once a few rows are done: the exit status, what it said, and how many rows it left."""
    # Jobs that a shell runs in the background ignore Ctrl-C, and hand that down to what they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, handler)
    deadline = time.monotonic() + 300
    while process.poll() is None and not (partial.exists() and len(partial.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, "the command ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, len(partial.read_text().splitlines()) - 1
