"""One table: tempbalance beside WeightWatcher, the released research codes and the bare linear-algebra calls.

Run with ``make bench``, or ``python benchmarks/run.py [--quick] [--released DIR] [--shared] [MODEL ...]``: on the CPU,
then on the GPU where there is one. What is measured replaces what ``results.json`` beside this file holds of the same
model and tool on the same device with as many threads, and ``README.md`` is written anew (neither with ``--quick``).
Needs Linux, for the peaks of memory.

``--released`` names a folder with checkouts of github.com/YefanZhou/TempBalance and github.com/HUST-AI-HYZ/FARMS under
their own names; without it their columns keep what was measured last.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Job, in_a_process

HERE = Path(__file__).parent
PACKAGES = ("tempbalance", "torch", "numpy", "scipy", "weightwatcher", "powerlaw", "transformers")
RELEASED = {"TempBalance, released": "TempBalance", "FARMS, released": "FARMS"}
TOOLS = ("tempbalance", "WeightWatcher", *RELEASED, "bare")
ANALYSES = {
    "Hill": ("tempbalance", "bare", "TempBalance, released"),
    "KS": ("tempbalance", "WeightWatcher"),
    "FARMS": ("tempbalance", "FARMS, released"),
}
# Analyses, processes of each tool, and how often each repeats the work.
PLAN: dict[str, tuple[tuple[str, ...], int, int]] = {
    "MiniLM": (("Hill", "KS", "FARMS"), 3, 3),
    "ResNet-18": (("Hill", "KS"), 3, 3),
    "4096 x 4096": (("Hill", "KS", "FARMS"), 1, 1),
    "11008 x 4096": (("Hill",), 1, 1),
    "LLaMA-7B block": (("Hill", "KS"), 1, 1),
}
QUICK: dict[str, tuple[tuple[str, ...], int, int]] = {
    "MiniLM": (("Hill", "KS"), 1, 2),
    "1024 x 1024": (("Hill", "KS", "FARMS"), 1, 2),
}
_IMPORT = "import time, torch; start = time.process_time(); import tempbalance; print(time.process_time() - start)"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": date.today().isoformat(),
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def commits(folder: str) -> dict[str, str]:
    """Which versions of the released codes these are."""
    found = {}
    for name in RELEASED.values() if folder else ():
        command = ["git", "-C", str(Path(folder) / name), "rev-parse", "HEAD"]
        found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


def measure(job: Job, tools: list[str], rounds: int, clock: str) -> dict[str, list[dict[str, Any]]]:
    """All tools in turn, several times, so that a machine that slows down slows all.

    Args:
        job: What to measure, by each of the tools.
        tools: Names of tools, tempbalance first.
        rounds: How often.
        clock: Which of the measured times count.

    Returns:
        What was measured, by tool and round, each with its ratio to tempbalance in the same round. On a CPU the bare
        calls are made with one thread and with all: the faster count.
    """
    found: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    for _ in range(rounds):
        for tool in tools:
            counts = {1, job.threads} if tool == "bare" and job.device == "cpu" else {job.threads}
            jobs = [Job(**{**vars(job), "tool": tool, "threads": count}) for count in counts]
            each = [in_a_process(one) | {"threads": one.threads} for one in jobs]
            best = min(each, key=lambda one: median(one[clock]))
            found[tool].append(best)
            best["ratio"] = median(best[clock]) / median(found["tempbalance"][-1][clock])
            print(f"  {tool}: {best}", flush=True)
    return found


def cell(found: list[dict[str, Any]]) -> str:
    """Time and memory of one tool, if it was measured."""
    if not found:
        return ""
    return f"{median(one['ratio'] for one in found):.2f}, {median(one['megabytes'] for one in found):.0f} MB"


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| where | model or matrix | estimator | " + " | ".join(TOOLS) + " |", "|---|" + "---|" * (len(TOOLS) + 2)]
    for where, run in results.items():
        for name, found in run["rows"].items():
            cells = [cell(found.get(tool, [])) for tool in TOOLS]
            lines.append(f"| {where} | {' | '.join(name.split(', '))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def import_seconds() -> float:
    """Processor time that ``import tempbalance`` adds to ``import torch``, in fresh processes."""
    command = [sys.executable, "-c", _IMPORT]
    return median(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5))


README = """# Benchmarks

    make bench

measures the table below and rewrites this page and `results.json`, which holds every single measurement. Each cell is
the time as a multiple of tempbalance's with the same estimator on the same model (above 1, tempbalance is faster) and
the peak of memory above the model's own. Every measurement is a process of its own; the tools take turns, and a ratio
is the median over the turns (1 to 3). Ratios travel between machines; seconds do not, and are only in the JSON.
`python benchmarks/run.py --quick` takes a few minutes and writes nothing.

{table}

- Where: "1 thread" (`--shared`) compares processor times, so that it can be measured on a machine that does other work,
  too; everything else compares times of the clock.
- The models: MiniLM is the pretrained encoder; ResNet-18 (for 32 x 32 images) and the matrices are as initialised, in
  float32. The LLaMA-7B block is 4 matrices of 4096 x 4096 and 3 of 11008 x 4096.
- tempbalance: `analyze` in float64. With `KS` the embeddings are included, as by WeightWatcher (0.7.7, with its
  defaults, beside `powerlaw` 1.5).
- The released codes need `--released DIR`, a folder with checkouts of github.com/YefanZhou/TempBalance and
  github.com/HUST-AI-HYZ/FARMS. Theirs are float32 SVDs: TempBalance of whole matrices, FARMS of 10 x 10 windows of half
  the short side, at most 2000. They are run as they are, but that `.cuda()` does nothing on a CPU.
- Bare: `torch.linalg.eigvalsh(W.T @ W)` in float64, one call after the other, with one thread or with all, whichever is
  faster.

Measured on:

{machine}

`import tempbalance` takes {import_ms:.0f} ms of processor time after `import torch`.

Five more are run by hand, and each writes a JSON file beside itself: `balancing.py`, what balancing costs in
training, `delay.py`, what it costs with a delay, `solvers.py`, the ways to the eigenvalues, `scale.py`, time and
memory by the number of blocks (the tables are in `docs/reference/benchmarks.md`), and `farms.py`, the accuracy of
FARMS on a large matrix, and its memory (see `docs/concepts/farms.md`).
"""


def write(results: dict[str, Any]) -> None:
    """The JSON file and the page."""
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    described = [
        f"- {where}: " + ", ".join(f"{key} {value}" for key, value in (run["machine"] | run["released"]).items()) + "."
        for where, run in results["runs"].items()
    ]
    milliseconds = 1000 * results["import_seconds"]
    page = README.format(table=table(results["runs"]), machine="\n".join(described), import_ms=milliseconds)
    (HERE / "README.md").write_text(page)


def fill(results: dict[str, Any], device: str, options: argparse.Namespace) -> None:
    """Measure on one device, and put it into the results; they are written after each row."""
    threads = 1 if options.shared else torch.get_num_threads()
    where = f"CPU, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else torch.cuda.get_device_name()
    clock = "processor_seconds" if options.shared else "seconds"
    run = results["runs"].setdefault(where, {"rows": {}, "released": {}})
    run["machine"] = machine() | {"threads": threads}
    run["released"] |= commits(options.released)
    plan = QUICK if options.quick else {name: PLAN[name] for name in options.models or PLAN}
    for name, (analyses, rounds, repeats) in plan.items():
        for analysis in analyses:
            tools = [tool for tool in ANALYSES[analysis] if options.released or tool not in RELEASED]
            print(f"{where}: {name}, {analysis}", flush=True)
            job = Job(name, analysis, "", device, threads, repeats, options.released)
            row = run["rows"].setdefault(f"{name}, {analysis}", {})
            row |= measure(job, tools, rounds, clock)
            if not options.quick:
                write(results)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models; writes nothing")
    parser.add_argument("--released", default="", help="a folder with the released codes")
    parser.add_argument("--shared", action="store_true", help="on the CPU only: one thread, and processor times")
    parser.add_argument("models", nargs="*", choices=[[], *PLAN], help="all by default")
    options = parser.parse_args()
    target = HERE / "results.json"
    results = {"runs": {}} if options.quick or not target.exists() else json.loads(target.read_text())
    results["import_seconds"] = import_seconds()
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() and not options.shared else [])]:
        fill(results, device, options)
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
