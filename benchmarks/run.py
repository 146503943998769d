"""Speed and memory beside WeightWatcher and the bare linear-algebra calls, in one run.

Run with ``make bench``, or ``python benchmarks/run.py [--quick]``. Writes ``results.json`` and ``README.md`` beside
this file (not with ``--quick``).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import importing
import memory
import speed
import torch

HERE = Path(__file__).parent
PACKAGES = ("tempbalance", "torch", "numpy", "scipy", "weightwatcher", "powerlaw", "transformers")


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


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| measured | result | range over pairs | target |", "|---|---|---|---|"]
    for row in rows:
        ratio = row.get("ratio")
        value = f"{ratio['median']:.2f}" if ratio else f"{row['value']:.0f}"
        spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else ""
        lines.append(f"| {row['name']} | {value} | {spread} | {row['target']} |")
    return "\n".join(lines)


README = """# Benchmarks

    make bench

measures the table below in one process on an otherwise idle machine and rewrites this page and `results.json`, which
holds every single measurement. A ratio is the median over pairs: the two sides are timed in turn, so that a machine
that slows down slows both. Ratios travel between machines; seconds do not, and are only in the JSON.
`python benchmarks/run.py --quick` takes a minute and writes nothing.

Both tools analyse the same live model in the same process, with their defaults but for tempbalance's estimator, `KS`,
as WeightWatcher's (beside `powerlaw` 1.5). WeightWatcher then adds the embeddings; in the second line tempbalance does
so too: the same matrices, the same alphas. "Bare" is `torch.linalg.eigvalsh(W.T @ W)` in float64, one call after the
other. Memory is the peak of resident memory of a fresh process, above that of one that has only imported.

{table}

Measured on {machine}.

Three more have to be run by hand, and each writes a JSON file beside itself: `balancing.py`, what balancing costs in
training, and `scale.py`, time and memory by the number of blocks (their tables stand in `docs/benchmarks.md`), and
`farms.py`, FARMS on a large matrix (its table in `docs/methods/farms.md`).
"""


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute instead of ten; writes nothing")
    quick = parser.parse_args().quick
    rows = (
        [comparison.row() for comparison in speed.compare(quick)] + memory.measure(quick) + [importing.measure(quick)]
    )
    where = machine()
    print(table(rows))
    if not quick:
        results = {"command": "python benchmarks/run.py", "machine": where, "results": rows}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        described = ", ".join(f"{key} {value}" for key, value in where.items())
        (HERE / "README.md").write_text(README.format(table=table(rows), machine=described))


if __name__ == "__main__":
    main()
