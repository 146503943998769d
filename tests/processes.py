"""Processes that are forked from a server which has imported torch and the package once and has no threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "tempbalance.analysis",  # `import tempbalance` loads its parts when they are used: in each process again
        "tempbalance.balance",
        "pytest",
    ]
)


def exit_code(function: Callable[..., Any], *args: Any) -> int | None:
    """Run a function in a process of its own, and return how that ended: minus the signal if one killed it."""
    process = context.Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode
