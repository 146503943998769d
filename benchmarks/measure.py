"""Measure the time and peak memory of one tool on one model in a new process: ``python benchmarks/measure.py JOB``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tools
import torch
from models import MODELS, gaussian
from torch import nn


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        model: Name of a model.
        analysis: ``Hill``, ``KS`` or ``FARMS``.
        tool: Name of a tool.
        device: Device of the model.
        threads: Number of linear-algebra threads.
        repeats: Number of timed runs.
        released: Folder of the released code.
    """

    model: str
    analysis: str
    tool: str
    device: str
    threads: int
    repeats: int
    released: str = ""

    def work(self, model: nn.Module) -> Callable[[], object]:
        """Return the function that is timed."""
        if self.tool.startswith("tempbalance"):
            return tools.tempbalance(model, self.analysis, self.tool.partition(", ")[2] or None)
        if self.tool == "WeightWatcher":
            return tools.weightwatcher(model)
        if self.tool == "TempBalance, released":
            return tools.released_tempbalance(model, Path(self.released))
        if self.tool == "FARMS, released":
            side = max(min(layer.weight.shape[:2]) for layer in model.modules() if isinstance(layer, nn.Linear))
            return tools.released_farms(model, Path(self.released), min(2000, side // 2))
        return tools.bare(model)


def in_a_process(job: Job) -> dict[str, Any]:
    """Measure in a new process.

    Args:
        job: The measurement.

    Returns:
        ``seconds`` and ``processor_seconds`` of each repeat, and ``megabytes``: peak memory above that of the model.

    Raises:
        SystemExit: The process failed; its messages are printed.
    """
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def kilobytes(key: str) -> int:
    """Return a number of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


class Peak:
    """Peak memory from now on, above the memory in use now, of the GPU or of the process (Linux)."""

    def __init__(self, device: str) -> None:
        """Reset the peak."""
        self._device = device
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            self._before = float(torch.cuda.memory_allocated())
        else:
            Path("/proc/self/clear_refs").write_text("5")  # a child process inherits the peak of its parent
            self._before = 1024.0 * kilobytes("VmRSS")

    def megabytes(self) -> float:
        """Return the increase of memory."""
        peak = torch.cuda.max_memory_allocated() if self._device != "cpu" else 1024 * kilobytes("VmHWM")
        return (peak - self._before) / 2**20


def measure(job: Job) -> dict[str, Any]:
    """Measure in this process; see ``in_a_process``."""
    torch.manual_seed(0)
    with tools.quiet_and_here(job.device):
        model = MODELS[job.model]().to(job.device).eval()
        job.work(gaussian((64, 48)).to(job.device))()  # loads lazily imported code
        work = job.work(model)
        peak = Peak(job.device)
        seconds, processor = [], []
        for repeat in range(job.repeats):
            began, used = time.perf_counter(), time.process_time()
            work()
            if job.device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
            if repeat == 0:
                megabytes = peak.megabytes()
    return {"seconds": seconds, "processor_seconds": processor, "megabytes": megabytes}


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
