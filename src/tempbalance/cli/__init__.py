"""The command line: parses, calls, prints. A new command is a function in a module of this package."""

from __future__ import annotations

import sys
from typing import Any

import typer

from tempbalance.cli import compress, demo, diagnose, recover
from tempbalance.cli import study as arena
from tempbalance.cli.app import app
from tempbalance.errors import TempBalanceError

__all__ = ["app", "arena", "compress", "demo", "diagnose", "main", "recover"]


def main(*args: Any) -> None:
    """Run the command line; errors that tempbalance raises on purpose end in one line and exit status 1.

    Args:
        *args: Arguments, by default those of the process.

    Raises:
        SystemExit: Always, with the exit status.
    """
    try:
        app(args=list(args) or None)
    except TempBalanceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
