"""Time the solvers by size on one device: eigenvalues of the Gram matrix, or singular values.

Run with ``OMP_NUM_THREADS=1 python benchmarks/solvers.py [--device cuda] [--quick]``. Writes ``solvers-cpu.json`` or
``solvers-cuda.json`` next to this file (not with ``--quick``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from run import machine
from torch import Tensor

Solver = Callable[[Tensor], Tensor]
SIZES = {
    "cpu": [(16, 128), (4, 512), (1, 1024), (1, 2048)],
    "cuda": [(16, 128), (4, 512), (1, 1024), (1, 4096), (1, 8192)],
}
LIBRARIES = {"cpu": ["default"], "cuda": ["default", "cusolver", "magma"]}
DRIVERS = {"cpu": [None], "cuda": [None, "gesvd", "gesvdj", "gesvda"]}


def eigenvalues(library: str) -> Solver:
    """Return a solver that uses the Gram matrix and one of torch's libraries."""

    def solve(matrices: Tensor) -> Tensor:
        """Return eigenvalues in ascending order, shape ``(B, n)``."""
        if matrices.is_cuda:
            torch.backends.cuda.preferred_linalg_library(library)
        return torch.linalg.eigvalsh(matrices.mT @ matrices)

    return solve


def squares(driver: str | None) -> Solver:
    """Return a solver that squares the singular values of one of cuSOLVER's drivers."""

    def solve(matrices: Tensor) -> Tensor:
        """Return eigenvalues in ascending order, shape ``(B, n)``."""
        return torch.linalg.svdvals(matrices, driver=driver).square().flip(-1)

    return solve


def solvers(device: str) -> Iterator[tuple[str, torch.dtype, Solver]]:
    """Yield all solvers of a device, the one that the library uses first."""
    for dtype in (torch.float64, torch.float32):
        for library in LIBRARIES[device]:
            yield f"eigvalsh, {library}", dtype, eigenvalues(library)
        for driver in DRIVERS[device]:
            yield f"svdvals, {driver or 'default'}", dtype, squares(driver)


def seconds(solve: Solver, matrices: Tensor, runs: int) -> list[float]:
    """Return the seconds of each run after one that is not counted; on a CPU, processor seconds."""
    clock = time.perf_counter if matrices.is_cuda else time.process_time
    times = []
    for _ in range(runs + 1):
        began = clock()
        solve(matrices).cpu()  # waits for the result
        times.append(clock() - began)
    return times[1:]


def measure(device: str, batch: int, side: int, runs: int) -> list[dict[str, Any]]:
    """Run every solver on one batch of Gaussian matrices; errors are relative to the largest eigenvalue."""
    matrices = torch.randn(batch, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = squares(None)(matrices)
    rows = []
    for name, dtype, solve in solvers(device):
        there = matrices.to(device, dtype)
        error = (solve(there).cpu().double() - exact).abs().amax() / exact.amax()
        times = seconds(solve, there, runs)
        precision = str(dtype).removeprefix("torch.")
        rows.append(
            {"batch": batch, "side": side, "solver": name, "dtype": precision, "error": float(error), "seconds": times}
        )
        print(f"{batch} x {side}, {name}, {precision}: {min(times):.4f} s, error {float(error):.0e}", flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SIZES), default="cpu", help="torch device")
    parser.add_argument("--quick", action="store_true", help="the small sizes, once; writes nothing")
    given = parser.parse_args()
    sizes = SIZES[given.device][:2] if given.quick else SIZES[given.device]
    rows = [row for batch, side in sizes for row in measure(given.device, batch, side, 1 if given.quick else 3)]
    if not given.quick:
        where = machine() | ({"gpu": torch.cuda.get_device_name()} if given.device == "cuda" else {})
        results = {
            "command": f"python benchmarks/solvers.py --device {given.device}",
            "machine": where,
            "results": rows,
        }
        path = Path(__file__).with_name(f"solvers-{given.device}.json")
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
