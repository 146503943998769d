"""The command line, run in this process."""

from __future__ import annotations

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
