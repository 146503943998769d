"""Plugin of pytest, ``-p strict_skips``: a skip whose reason is not in ``allowed_skips.txt`` fails the run.

A broken installation skips whole files; without this, the run still passes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")
FOUND = pytest.StashKey[list[str]]()


def allowed_reasons(text: str) -> tuple[str, ...]:
    """Return the beginnings of reasons in a list; each line must also say why the skip is accepted."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if wrong := [line for line in lines if len([part for part in line.split("\t") if part.strip()]) != 2]:
        raise pytest.UsageError(f"{ALLOWED.name}: expected a reason, a tab and why it is accepted, got {wrong[0]!r}")
    return tuple(line.split("\t")[0] for line in lines)


def pytest_configure(config: pytest.Config) -> None:
    """Read the list before the first test."""
    config.stash[FOUND] = []
    allowed_reasons(ALLOWED.read_text("utf-8"))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a skip is not in the list. With xdist, the reports are those of all workers."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:  # a worker
        return
    allowed = allowed_reasons(ALLOWED.read_text("utf-8"))
    skipped = {
        report.nodeid: report.longrepr[2].removeprefix("Skipped: ") for report in terminal.stats.get("skipped", ())
    }
    session.config.stash[FOUND] = [
        f"{name}: {reason}" for name, reason in skipped.items() if not reason.startswith(allowed)
    ]
    if session.config.stash[FOUND] and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the skips that failed the run."""
    for line in terminalreporter.config.stash[FOUND]:
        terminalreporter.write_line(f"skip without an entry in tests/{ALLOWED.name}: {line}", red=True)
