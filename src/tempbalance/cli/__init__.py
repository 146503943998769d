"""The command line. Each module defines commands: a command parses its options, calls a public function and prints.

Command modules import torch and the rest of the package inside their functions only, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from tempbalance.cli import compress, demo, diagnose, recover, study
from tempbalance.cli.app import app
from tempbalance.errors import TempBalanceError

__all__ = ["app", "compress", "demo", "diagnose", "main", "recover", "study"]

_TRACEBACK = "TEMPBALANCE_TRACEBACK"


def main(*args: Any) -> None:
    """Run the command line with these arguments or those of the process; an error exits with status 1 and one line."""
    try:
        app(args=list(args) or None, prog_name="tempbalance")
    except TempBalanceError as error:
        typer.echo(f"error: {error}", err=True)
    except Exception as error:  # a bug, or a failure that the library does not wrap
        if os.environ.get(_TRACEBACK):
            raise
        typer.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
        typer.echo(f"Set {_TRACEBACK}=1 to see the traceback, and please report it.", err=True)
    sys.exit(1)
