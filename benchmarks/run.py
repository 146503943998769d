"""Compare tempbalance with WeightWatcher, the released research code and bare linear algebra.

Run with ``make bench``, or ``python benchmarks/run.py [--quick] [--released DIR] [--shared] [MODEL ...]``: on the CPU,
then on the GPU if there is one. Results replace those of the same model, tool, device and number of threads in
``results.json``, and ``README.md`` is rewritten (neither with ``--quick``). Needs Linux, for peak memory.

``--released`` names a folder with checkouts of github.com/YefanZhou/TempBalance and github.com/HUST-AI-HYZ/FARMS under
their own names; without it their columns keep their last results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import Job, in_a_process

HERE = Path(__file__).parent
PACKAGES = ("tempbalance", "torch", "numpy", "scipy", "weightwatcher", "powerlaw", "transformers")
RELEASED = {"TempBalance, released": "TempBalance", "FARMS, released": "FARMS"}
TOOLS = ("tempbalance", "tempbalance, float32", "WeightWatcher", *RELEASED, "bare")
ANALYSES = {
    "Hill": ("tempbalance", "tempbalance, float32", "bare", "TempBalance, released"),
    "KS": ("tempbalance", "tempbalance, float32", "WeightWatcher"),
    "FARMS": ("tempbalance", "FARMS, released"),
}
# Analyses, processes per tool, repeats per process.
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


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of the installed packages."""
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
        **{name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
    }


def commits(folder: str) -> dict[str, str]:
    """Return the commits of the released code."""
    found = {}
    for name in RELEASED.values() if folder else ():
        command = ["git", "-C", str(Path(folder) / name), "rev-parse", "HEAD"]
        found[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


def measure(job: Job, tools: list[str], rounds: int, clock: str) -> dict[str, list[dict[str, Any]]]:
    """Run all tools in turn, so that a change of the machine's speed affects all of them.

    Args:
        job: The measurement; its tool is replaced by each of the tools.
        tools: Names of tools, tempbalance first.
        rounds: Number of processes per tool.
        clock: Key of the measured time that is compared.

    Returns:
        Measurements by tool and round, each with its ratio to tempbalance in the same round. On a CPU the bare calls
        run with one thread and with all; the faster one is kept.
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
    """Format the time and memory of one tool; empty if it was not measured."""
    if not found:
        return ""
    return f"{median(one['ratio'] for one in found):.2f}, {median(one['megabytes'] for one in found):.0f} MB"


def table(results: dict[str, Any]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| where | model or matrix | estimator | " + " | ".join(TOOLS) + " |", "|---|" + "---|" * (len(TOOLS) + 2)]
    for where, run in results.items():
        for name, found in run["rows"].items():
            cells = [cell(found.get(tool, [])) for tool in TOOLS]
            lines.append(f"| {where} | {' | '.join(name.split(', '))} | {' | '.join(cells)} |")
    return "\n".join(lines)


README = """# Benchmarks

    make bench

measures the first table and rewrites this page and `results.json`, which has every measurement. A cell is the time as a
multiple of tempbalance's, with the same estimator on the same model (above 1: tempbalance is faster), and the peak
memory above that of the model. Each measurement runs in a new process; the tools take turns, and a ratio is the median
over 1 to 3 turns. Ratios are comparable between machines; seconds are in the JSON only.
`python benchmarks/run.py --quick` takes a few minutes and writes nothing.

{table}

- Where: "1 thread" (`--shared`) compares processor times, so that a busy machine can be used; all other rows compare
  wall-clock times.
- Models: MiniLM is the pretrained encoder; ResNet-18 (for 32 x 32 images) and the matrices are freshly initialised, in
  float32. The LLaMA-7B block is 4 matrices of 4096 x 4096 and 3 of 11008 x 4096.
- tempbalance: `analyze` in float64, or with `dtype="float32"`. `KS` includes the embeddings, as WeightWatcher does
  (0.7.7 with its defaults and `powerlaw` 1.5).
- Released code: `--released DIR` names a folder with checkouts of github.com/YefanZhou/TempBalance and
  github.com/HUST-AI-HYZ/FARMS. Both use float32 SVDs, TempBalance of full matrices, FARMS of 10 x 10 windows of half
  the short side, at most 2000. They run unchanged, except that `.cuda()` has no effect on a CPU.
- Bare: `torch.linalg.eigvalsh(W.T @ W)` in float64, one call per matrix, with one thread or all, whichever is faster.

Measured on:

{machine}

## Imports and the command line

`python benchmarks/import_time.py`: processor time, medians of 11 processes per row. Targets: tempbalance adds under
100 ms to `import torch`; `--help` and `--version` take under 0.5 s, without loading torch.

{imports}

Measured with `PYTHONDONTWRITEBYTECODE=1`, so every process compiles the sources; with bytecode caches, all public names
add 0.15 s.

## Other scripts

Each writes its results as JSON.

| script | measures | results |
|---|---|---|
| `balancing.py` | cost of balancing during training | `docs/reference/benchmarks.md` |
| `delay.py` | cost of a refresh that is measured asynchronously | `docs/reference/benchmarks.md` |
| `solvers.py` | eigenvalue solvers by size, dtype and device | `docs/reference/benchmarks.md` |
| `scale.py` | time and memory by number of blocks | `docs/reference/benchmarks.md` |
| `rounding.py` | how much rounding to each quantised format moves the alphas of MiniLM | `benchmarks/rounding.json` |
| `quantised.py` | memory for quantised files of 7B shape | `docs/reference/benchmarks.md` |
| `gpu.py` | correctness and times on a GPU | `gpu.json` |
| `reading.py` | time to list and read a file by number of tensors | `benchmarks/reading.json` |
| `farms.py` | accuracy and memory of FARMS on a large matrix | `docs/concepts/farms.md` |
| `untrained.py` | misses and false alarms of the test for untrained layers | `docs/reference/metrics.md` |
| `optimizers.py` | which optimizers a balancer works with | `docs/reference/optimizers.md` |
| `same_results.py` | whether a change leaves every number as it was | exit status |
"""


def import_table() -> str:
    """The results of ``import_time.py`` as a Markdown table."""
    rows = json.loads((HERE / "import_time.json").read_text())["results"]
    lines = ["| command | processor time | added to | added | ratio |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        added = f"{1000 * row['added_processor_seconds']:.0f} ms | {row['processor_ratio']:.2f}"
        compared = " | | " if row["base"] == name else f"`{row['base']}` | {added}"
        lines.append(f"| `{name}` | {1000 * row['processor_seconds']:.0f} ms | {compared} |")
    return "\n".join(lines)


def write_page() -> None:
    """Write ``README.md`` from the JSON files."""
    runs = json.loads((HERE / "results.json").read_text())["runs"]
    described = [
        f"- {where}: " + ", ".join(f"{key} {value}" for key, value in (run["machine"] | run["released"]).items()) + "."
        for where, run in runs.items()
    ]
    page = README.format(table=table(runs), machine="\n".join(described), imports=import_table())
    (HERE / "README.md").write_text(page)


def write(results: dict[str, Any]) -> None:
    """Write the JSON file and the page."""
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page()


def fill(results: dict[str, Any], device: str, options: argparse.Namespace) -> None:
    """Measure on one device and update the results; they are written after each row."""
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
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models; writes nothing")
    parser.add_argument("--released", default="", help="folder with the released code")
    parser.add_argument("--shared", action="store_true", help="CPU only, one thread, processor times")
    parser.add_argument("models", nargs="*", choices=[[], *PLAN], help="all by default")
    options = parser.parse_args()
    target = HERE / "results.json"
    results = {"runs": {}} if options.quick or not target.exists() else json.loads(target.read_text())
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() and not options.shared else [])]:
        fill(results, device, options)
    print(table(results["runs"]))


if __name__ == "__main__":
    main()
