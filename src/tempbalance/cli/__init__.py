"""The command line. Each module defines commands: a command parses its options, calls a public function and prints.

Command modules import torch and the rest of the package inside their functions only, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import Any

from tempbalance.cli import allocate, analyze, compare, demo, prune, recover, search, study, track
from tempbalance.cli.app import app
from tempbalance.cli.failures import handled_failures

__all__ = ["allocate", "analyze", "app", "compare", "demo", "main", "prune", "recover", "search", "study", "track"]


def main(*args: Any) -> None:
    """Run the command line with these arguments or those of the process; a failure exits with a status and one line."""
    with handled_failures():
        app(args=list(args) or None, prog_name="tempbalance")
