"""How much memory a device has left."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

__all__ = ["available_memory", "copies_fit"]

_SHARE = 0.5  # of the available memory, for copies of weights
_CGROUP = Path("/sys/fs/cgroup")


def copies_fit(size: int, device: torch.device) -> bool:
    """Return whether copies of weights may be kept in memory; True if the available memory is unknown."""
    free = available_memory(device)
    return free is None or size <= _SHARE * free


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still use on a device; None if that is unknown (not CUDA or Linux)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        if match := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii")):
            found.append(1024 * int(match[1]))
    with contextlib.suppress(OSError, ValueError):  # the limit of a container; "max" without one
        limit, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(encoding="ascii"), re.M)
        found.append(limit - used + int(cached[1] if cached else 0))
    return min(found, default=None)
