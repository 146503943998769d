"""Measure FARMS on a large matrix: alpha compared with the released code's 225 windows, and peak memory (Linux).

Run with ``python benchmarks/farms.py [--quick]``; writes ``farms.json`` next to this file (not with ``--quick``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from run import machine

import tempbalance as tb

HERE = Path(__file__).parent
_OPS = 15  # positions per axis of the released code: 225 windows
_CHILD = """
import sys
from pathlib import Path
import torch
import tempbalance as tb
side, dtype, windows = int(sys.argv[1]), getattr(torch, sys.argv[2]), eval(sys.argv[3])
weight = torch.empty(side, side, dtype=dtype)
for row in weight:
    row.normal_(generator=torch.Generator().manual_seed(0))
tb.weight_fit.fit_weight(weight[:64, :64].clone(), windows=windows)
def kilobytes(key):
    return next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")
before = int(kilobytes("VmRSS"))
tb.weight_fit.fit_weight(weight, windows=windows)
print((int(kilobytes("VmHWM")) - before) * 1024 / (weight.numel() * weight.itemsize))
"""


def weight(side: int) -> torch.Tensor:
    """Draw a float32 matrix from Student's t distribution with 4 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)
    squares = sum(torch.randn(side, side, generator=generator).square() for _ in range(4))
    assert isinstance(squares, torch.Tensor)
    return torch.randn(side, side, generator=generator) / (squares / 4).sqrt()


def memory(side: int, window: int) -> list[dict[str, Any]]:
    """Measure peak resident memory above that of the weight, in units of the weight, each in a new process."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        for windows in ("tb.FARMS()", f"tb.FARMS(rows={window}, windows=5)"):
            command = [sys.executable, "-c", _CHILD, str(side), dtype, windows]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"dtype": dtype, "windows": windows, "peak_over_weight": float(done.stdout)})
            print(rows[-1], flush=True)
    return rows


def accuracy(side: int, window: int) -> dict[str, Any]:
    """Compare the alpha of the default windows with that of all 225."""
    matrix = weight(side)
    few = tb.weight_fit.fit_weight(matrix, windows=tb.FARMS())
    many = tb.weight_fit.fit_weight(matrix, windows=tb.released.FARMSAsReleased(window, _OPS)).fit.alpha
    found = {
        "windows": few.num_windows,
        "alpha": few.fit.alpha,
        "stderr": few.fit.stderr,
        "coverage": few.coverage,
        "alpha_of_225": many,
        "difference_over_stderr": (few.fit.alpha - many) / few.fit.stderr,
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use a 1024 x 1024 matrix; writes nothing")
    quick = parser.parse_args().quick
    side, window = (1024, 500) if quick else (4096, 2000)
    results = {
        "command": "python benchmarks/farms.py",
        "machine": machine(),
        "side": side,
        "accuracy": accuracy(side, window),
        "memory": memory(side, window),
    }
    if not quick:
        (HERE / "farms.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
