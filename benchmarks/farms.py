"""FARMS on a large matrix: time beside its plain spectrum and beside 225 SVDs, accuracy, and peak memory (Linux).

Run with ``python benchmarks/farms.py [--quick]`` on an otherwise idle machine; writes ``farms.json`` beside this file
(not with ``--quick``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from paired import Comparison, pairs, seconds
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
tb.fit_windows(weight[:64, :64].clone(), windows=windows)
def kilobytes(key):
    return next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")
before = int(kilobytes("VmRSS"))
tb.fit_windows(weight, windows=windows)
print((int(kilobytes("VmHWM")) - before) * 1024 / (weight.numel() * weight.itemsize))
"""


def weight(side: int) -> torch.Tensor:
    """Independent entries with the heavy tails of Student's t with 4 degrees of freedom, float32."""
    generator = torch.Generator().manual_seed(0)
    squares = sum(torch.randn(side, side, generator=generator).square() for _ in range(4))
    assert isinstance(squares, torch.Tensor)
    return torch.randn(side, side, generator=generator) / (squares / 4).sqrt()


def memory(side: int, window: int) -> list[dict[str, Any]]:
    """Peak of resident memory above the weight, in units of the weight, each in a fresh process."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        for windows in ("tb.FARMS()", f"tb.FARMS(rows={window}, windows=5)"):
            command = [sys.executable, "-c", _CHILD, str(side), dtype, windows]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"dtype": dtype, "windows": windows, "peak_over_weight": float(done.stdout)})
            print(rows[-1], flush=True)
    return rows


def speed(side: int, window: int, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Times in pairs, and the alpha of few windows beside that of all 225."""
    matrix = weight(side)
    submatrix = matrix[:window, :window]
    farms, plain = pairs(lambda: tb.fit_windows(matrix), lambda: tb.Hill().fit(tb.weight_spectrum(matrix)), count)
    again, svd = pairs(lambda: tb.fit_windows(matrix), lambda: torch.linalg.svdvals(submatrix), count)
    released = [_OPS**2 * time for time in svd]
    times = [
        Comparison("FARMS(): time over that of the plain spectrum", "at most 1.2", farms, plain),
        Comparison(
            f"FARMS(): times faster than {_OPS**2} windows of {window} x {window} by SVD, extrapolated from one",
            "at least 50",
            again,
            released,
            inverse=True,
        ),
    ]
    rows = [row.row() for row in times]
    print(rows, flush=True)
    few = tb.fit_windows(matrix)
    found: list[tb.WindowedFit] = []
    everything = tb.FARMSAsReleased(window, _OPS)
    taken = seconds(lambda: found.append(tb.fit_windows(matrix, windows=everything)))
    many = found[0].fit.alpha
    accuracy = {
        "windows": few.num_windows,
        "alpha": few.fit.alpha,
        "stderr": few.fit.stderr,
        "coverage": few.coverage,
        "alpha_of_225": many,
        "difference_over_stderr": (few.fit.alpha - many) / few.fit.stderr,
        "seconds_of_225_here": taken,
    }
    print(accuracy, flush=True)
    return rows, accuracy


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a matrix of 1024 x 1024; writes nothing")
    quick = parser.parse_args().quick
    side, window, count = (1024, 500, 2) if quick else (4096, 2000, 3)
    rows, accuracy = speed(side, window, count)
    results = {
        "command": "python benchmarks/farms.py",
        "machine": machine(),
        "side": side,
        "results": rows,
        "accuracy": accuracy,
        "memory": memory(side, window),
    }
    if not quick:
        (HERE / "farms.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
