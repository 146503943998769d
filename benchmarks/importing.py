"""What ``import tempbalance`` adds to ``import torch``."""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from typing import Any

_CHILD = "import time, torch; start = time.perf_counter(); import tempbalance; print(time.perf_counter() - start)"


def measure(quick: bool) -> dict[str, Any]:
    """Import in fresh processes.

    Args:
        quick: Fewer of them.

    Returns:
        One row: the median, and every measurement.
    """
    times = [
        1000 * float(subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout)
        for _ in range(3 if quick else 11)
    ]
    return {"name": "import tempbalance after torch: ms", "target": "under 150", "value": median(times), "all": times}
