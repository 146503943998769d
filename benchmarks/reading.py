"""Time to list and read every tensor of a file against the number of tensors, with torch.load and safetensors alone.

Run with ``OMP_NUM_THREADS=1 python benchmarks/reading.py [--quick]``. Writes ``reading.json`` next to this file (not
with ``--quick``). Tensors have 2 x 3 entries, so that the time is that of names, headers and calls. "list" opens the
file and finds the weights, as ``analyze`` does before it computes anything; "read" reads each of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from run import HERE, machine
from safetensors.torch import load_file, save_file

import tempbalance as tb
from tempbalance.layers import Select
from tempbalance.layers import find_weights_and_size as list_weights

SAVE: dict[str, Callable[[Any, Path], object]] = {"model.safetensors": save_file, "model.pt": torch.save}
FLOOR: dict[str, Callable[[Path], object]] = {
    "model.safetensors": load_file,
    "model.pt": lambda path: torch.load(path, weights_only=True, mmap=True),
}


def measure(file: str, count: int) -> dict[str, float]:
    """Measure one file in this process.

    Args:
        file: Name of the file, which says its format.
        count: Number of tensors.

    Returns:
        Processor seconds of each part.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        SAVE[file]({f"layers.{i // 10}.part{i % 10}.weight": torch.zeros(2, 3) for i in range(count)}, path)
        began = time.process_time()
        with tb.open_checkpoint(path) as checkpoint:
            weights, _, _ = list_weights(checkpoint, Select())
            listed = time.process_time()
            for weight in weights:
                weight.load()
            read = time.process_time()
        FLOOR[file](path)
        floor = time.process_time() - read
    return {"list": listed - began, "read": read - listed, "floor": floor}


def main() -> None:
    """Measure each case in a new process, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 tensors; writes nothing")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case[0], int(arguments.case[1]))))
        return
    rows = []
    for file in SAVE:
        for count in [1_000] if arguments.quick else [1_000, 10_000, 50_000, 100_000]:
            command = [sys.executable, __file__, "--case", file, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({"file": file, "tensors": count, **row})
            numbers = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
            print(f"{file}, {count} tensors: {numbers}", flush=True)
    if not arguments.quick:
        results = {"command": "OMP_NUM_THREADS=1 python benchmarks/reading.py", "machine": machine(), "results": rows}
        (HERE / "reading.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
