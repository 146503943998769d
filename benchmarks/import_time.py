"""Time imports and ``--help``: tempbalance added to ``import torch``, and commands compared with an empty Python.

Run with ``OMP_NUM_THREADS=1 python benchmarks/import_time.py [--quick]``. Writes ``import_time.json`` next to this file
and the table in ``README.md`` (not with ``--quick``).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

from run import HERE, machine, write_page

# Name: arguments of Python, and the case that it is compared with.
CASES: dict[str, tuple[list[str], str]] = {
    "python -c pass": (["-c", "pass"], "python -c pass"),
    "import tempbalance": (["-c", "import tempbalance"], "python -c pass"),
    "tempbalance --version": (["-m", "tempbalance", "--version"], "python -c pass"),
    "tempbalance --help": (["-m", "tempbalance", "--help"], "python -c pass"),
    "tempbalance analyze --help": (["-m", "tempbalance", "analyze", "--help"], "python -c pass"),
    "tempbalance prune --help": (["-m", "tempbalance", "prune", "--help"], "python -c pass"),
    "import torch": (["-c", "import torch"], "import torch"),
    "import torch, tempbalance": (["-c", "import torch, tempbalance"], "import torch"),
    "import torch, then every public name": (
        ["-c", "import torch, tempbalance as tb; [getattr(tb, name) for name in tb.__all__]"],
        "import torch",
    ),
}


def run_once(arguments: list[str]) -> tuple[float, float]:
    """Run Python in a new process.

    Returns:
        Wall-clock and processor seconds.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, Any]:
    """Run all cases in turn, after one round that is not counted.

    Args:
        rounds: Number of processes per case.

    Returns:
        Per case the median seconds, what they add to the base and their ratio to it, and every measurement.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds + 1):
        for name, (arguments, _) in CASES.items():
            times[name].append(run_once(arguments))
    medians = {name: [median(column) for column in zip(*runs[1:], strict=True)] for name, runs in times.items()}
    return {
        name: {
            "base": base,
            "seconds": medians[name][0],
            "processor_seconds": medians[name][1],
            "added_processor_seconds": medians[name][1] - medians[base][1],
            "processor_ratio": medians[name][1] / medians[base][1],
            "runs": times[name][1:],
        }
        for name, (_, base) in CASES.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two processes per case; writes nothing")
    quick = parser.parse_args().quick
    rows = measure(2 if quick else 11)
    for name, row in rows.items():
        print(f"{name}: {row['processor_seconds']:.3f} s, {row['processor_ratio']:.2f} times {row['base']}")
    if not quick:
        results = {"command": "python benchmarks/import_time.py", "machine": machine(), "results": rows}
        (HERE / "import_time.json").write_text(json.dumps(results, indent=1) + "\n")
        write_page()


if __name__ == "__main__":
    main()
