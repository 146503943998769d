"""Measure the pretrained networks of ``studies/diagnosis.py``: ``python experiments/diagnose.py``.

It writes ``experiments/results/diagnosis.json``; ``report_study.py diagnosis`` makes the page from it and from the
results of the other studies. A missing network is skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from run_study import DATA, RESULTS
from studies.diagnosis import NETS, Net

import tempbalance as tb
from tempbalance._files import write_atomically


def measure(net: Net, path: Path) -> dict[str, Any]:
    """Measure one network.

    Args:
        net: The network.
        path: Its weights.

    Returns:
        Number of layers with an alpha, mean alpha and imbalance, with its known error.
    """
    analysis = tb.analyze(path)
    alphas = [layer.alpha for layer in analysis.layers if math.isfinite(layer.alpha)]
    numbers = {"layers": len(alphas), "mean_alpha": fmean(alphas), "imbalance": analysis.imbalance}
    known = {"name": net.name, "error": net.error, "known_from": net.known_from}
    return known | numbers | {"estimator": str(analysis.settings["estimator"])}


def find(net: Net, data: Path) -> Path | None:
    """The path of its weights; None if they are missing."""
    package = importlib.util.find_spec(net.file) if net.file.isidentifier() else None
    path = data / net.file if package is None or package.origin is None else Path(package.origin).parent / "model"
    return path if path.exists() else None


def main(argv: Sequence[str] | None = None, *, results: Path = RESULTS, nets: Sequence[Net] = NETS) -> int:
    """Measure the networks.

    Args:
        argv: The command line.
        results: The folder of results.
        nets: The networks.

    Returns:
        0 if no network is missing, else 1.
    """
    parser = argparse.ArgumentParser(description="Measure the alphas of pretrained networks.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of all data (see experiments/README.md)")
    data = parser.parse_args(argv).data
    rows = []
    for net in nets:
        path = find(net, data)
        if path is None:
            print(f"{net.name}: skipped, there is no {data / net.file}: {net.source}", file=sys.stderr)
        else:
            rows.append(measure(net, path))
    file = results / "diagnosis.json"
    content = {"versions": {name: version(name) for name in ("tempbalance", "torch", "numpy")}, "nets": rows}
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
    print(f"saved {file}")
    return 0 if len(rows) == len(nets) else 1


if __name__ == "__main__":
    sys.exit(main())
