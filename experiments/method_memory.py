"""Memory of every training method: ``python experiments/method_memory.py experiments/method_memory.json``.

MiniLM is fine-tuned on 64 sentences of SST-2 as in the study of text, once per method and repeat, each in a process of
its own with one thread (Linux). The memory is the peak during training above that before: gradients, the optimizer's
state, activations, and what the method adds. ``report_study.py`` writes them to a page. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run_study import DATA, HERE
from studies.digits import METHODS as COMPARED

import tempbalance as tb
from tempbalance._files import write_atomically
from tempbalance.study import Configuration

PLAIN = "plain"
METHODS = (  # levi needs inputs that are one tensor
    PLAIN,
    *(name.replace("c=[0.01,0.1,1,10],lr=1e-2", "c=0.01") for name in COMPARED.methods if name != "levi"),
)
PARAMETERS = {"dataset": "sst2", "examples": 64, "epochs": 5, "evaluated": 200}
LR, SEED = 1e-4, 0


def measure(method: str, data: str) -> float:
    """Train once in this process; return the megabytes."""
    task = tb.study.load_task(HERE / "low_data_text.py", {**PARAMETERS, "data": data})
    warm = tb.study.load_task(HERE / "low_data_text.py", {**PARAMETERS, "data": data, "examples": 1, "epochs": 1})
    warm.run(Configuration(PLAIN, LR), SEED)  # imports, data and the model are in memory from here on
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = kilobytes("VmRSS")
    trial = task.run(Configuration(method, LR), SEED)
    if trial.status != "ok":
        raise SystemExit(trial.error)
    return (kilobytes("VmHWM") - before) / 1e3


def kilobytes(key: str) -> int:
    """A number of this process."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1])


def in_a_process(method: str, data: Path) -> float:
    """Measure in a new process."""
    command = [sys.executable, __file__, "-", "--method", method, "--data", str(data)]
    # Large tensors are returned to the system when they are freed, so that the peak is that of tensors in use; this
    # takes so long that times mean nothing.
    given = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{method} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all, write, print."""
    parser = argparse.ArgumentParser(description="Measure the memory of every training method.")
    parser.add_argument("out", type=Path, help="file for the results, which are resumed; - with --method")
    parser.add_argument("--data", type=Path, default=DATA / "text", help="folder of the text data")
    parser.add_argument("--repeats", type=int, default=3, help="processes per method (default: 3)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names of methods (default: all)")
    parser.add_argument("--method", help="measure one method in this process, and print it")
    given = parser.parse_args(argv)
    if given.method is not None:
        print(measure(given.method, str(given.data)))
        return
    settings: dict[str, Any] = {"parameters": PARAMETERS, "lr": LR, "seed": SEED}
    rows: dict[str, list[float]] = {}
    if given.out.exists():
        rows = json.loads(given.out.read_text(encoding="utf-8"))["megabytes"]
    for repeat in range(given.repeats):
        for name in given.methods:
            if len(rows.setdefault(name, [])) <= repeat:
                rows[name].append(in_a_process(name, given.data))
                write_atomically(given.out, (json.dumps({**settings, "megabytes": rows}, indent=1) + "\n").encode())
                print(name, rows[name][-1], flush=True)


if __name__ == "__main__":
    main()
