"""Is the standard error of FARMS correct? Its alpha against that of 225 windows, on several kinds of matrices.

Square matrices of side ``n``, windows of side ``n / 2``; ``FARMS()`` against ``FARMS(windows=15)``, 15 x 15 windows:

- ``gaussian``: independent normal entries, as at initialisation;
- ``spikes``: the same plus a matrix of rank ``n / 32`` with large singular values, as after some training;
- ``student``: independent entries with the heavy tails of Student's t with 4 degrees of freedom;
- ``pareto``: Pareto eigenvalues (alpha = 2.5) and random singular vectors, as after much training;
- ``scaled``: normal entries, every eighth of the rows and every column of its own scale, as heads and channels have.

Run ``python experiments/farms_stderr.py`` (about 20 minutes on one core); it writes ``farms_stderr.json``.
``python experiments/farms_stderr.py 4096 1`` adds one matrix of each kind of side 4096 (10 minutes). A normal error has
68 % within 1 standard error and 95 % within 2.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import tempbalance as tb

HERE = Path(__file__).parent
KINDS = ("gaussian", "spikes", "student", "pareto", "scaled")
COUNTS = {128: 40, 256: 40, 512: 20, 1024: 10, 2048: 3}  # matrices of each kind by their side


def matrix(kind: str, side: int, seed: int) -> Tensor:
    """One square matrix of the given kind, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if kind == "pareto":
        weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(side, 2.5), (side, side), seed=seed)
    elif kind == "student":
        weight = normal(side, side) / (normal(4, side, side).square().sum(0) / 4).sqrt()
    elif kind == "scaled":
        rows = (0.4 * normal(8)).exp().repeat_interleave(side // 8).unsqueeze(1)
        weight = rows * normal(side, side) * (0.5 * normal(side)).exp()
    else:
        weight = normal(side, side)
        if kind == "spikes":
            strengths = torch.linspace(1, 8, side // 32, dtype=torch.float64) / math.sqrt(side)
            weight += normal(side, side // 32) * strengths @ normal(side // 32, side)
    return weight.float()


def summary(name: str, found: list[tuple[float, float, int]]) -> dict[str, Any]:
    """How often, and by how much, the two alphas differ; ``found`` has difference, standard error and windows."""
    row = {
        "matrices": name,
        "count": len(found),
        "windows": fmean(count for _, _, count in found),
        "rms_difference": math.sqrt(fmean(difference**2 for difference, _, _ in found)),
        "rms_stderr": math.sqrt(fmean(stderr**2 for _, stderr, _ in found)),
        "within_1": fmean(abs(difference) <= stderr for difference, stderr, _ in found),
        "within_2": fmean(abs(difference) <= 2 * stderr for difference, stderr, _ in found),
    }
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def main() -> None:
    """Run, print, write."""
    found: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    single: list[dict[str, Any]] = []
    counts = {int(sys.argv[1]): int(sys.argv[2])} if len(sys.argv) > 1 else COUNTS
    for side, count in counts.items():
        for kind in KINDS:
            rows = found[kind, side] = []
            for seed in range(count):
                weight = matrix(kind, side, seed)
                few, many = (
                    tb.weight_fit.fit_weight(weight, windows=tb.FARMS()),
                    tb.weight_fit.fit_weight(weight, windows=tb.FARMS(windows=15)),
                )
                rows.append((few.fit.alpha - many.fit.alpha, few.fit.stderr, few.num_windows))
            single.append(summary(f"{kind} {side}", rows))
    file = HERE / "farms_stderr.json"
    if counts is not COUNTS:
        command = f"python experiments/farms_stderr.py {' '.join(sys.argv[1:])}"
        written = json.loads(file.read_text()) | {f"side {sys.argv[1]}": {"command": command, "results": single}}
        file.write_text(json.dumps(written, indent=1) + "\n")
        return
    results = [
        *(summary(kind, [row for (k, _), rows in found.items() if k == kind for row in rows]) for kind in KINDS),
        *(summary(str(side), [row for (_, n), rows in found.items() if n == side for row in rows]) for side in COUNTS),
        summary("all", [row for rows in found.values() for row in rows]),
    ]
    written = {"command": "python experiments/farms_stderr.py", "torch": torch.__version__, "results": results}
    file.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side_and_count", nargs="*", type=int)
    parser.parse_args()
    main()
