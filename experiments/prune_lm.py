"""Does an uneven sparsity over the blocks of a language model help? The perplexity of seven allocations.

    python experiments/prune_lm.py --model DIR --text FILE... [--calibration FILE...] --out DIR [--quick]

``--model`` is any Hugging Face causal language model (a folder of ``experiments/train_lm.py``, or LLaMA, OPT, Qwen);
``--text`` is any file that ``tempbalance.compress.load_tokens`` reads (.txt, .json, .jsonl, .npz). Sequences for
calibration are drawn from ``--calibration``, or from the first half of the text. The rest is cut into segments. Every
third one is the validation text, on which epsilon is chosen from the same grid for every allocation that has one, with
seed 0; the others are the test text, on which perplexity is reported, with seeds 1 to 5. The allocations:

- ``uniform``: the same for all; ``erk``: by shape, per layer (Evci et al. 2020);
- ``owl``: by activation outliers (Yin et al. 2024), counted on sequences that the seed chooses;
- ``alpha``: AlphaPruning (Lu et al. 2024) with the Hill alpha of full matrices; ``farms``: of FARMS windows;
- ``inverted``: ``alpha`` inverted, most for the smallest alpha; ``depth``: later blocks more (2502.14770). Both are
  controls: as uneven, but not because of alpha.

Finished runs in ``--out`` are reused, so the same command resumes. It writes ``results.json``, ``table.md`` and
``plot.svg`` there. ``--quick`` runs two sparsities and two seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import transformers
from prune_lm_report import plot, summarize, table
from torch import Tensor

import tempbalance as tb
from tempbalance._files import write_atomically
from tempbalance._progress import progress_bar

PRUNERS = ("magnitude", "wanda", "sparsegpt")
WITH_EPSILON = ("owl", "alpha", "farms", "inverted", "depth")
ARMS = ("uniform", "erk", *WITH_EPSILON)
WINDOWS = 2  # of text in a segment


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings except model and text."""

    sparsities: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8)
    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    samples: int = 16  # calibration sequences
    length: int = 256  # tokens of a sequence, and of a window of text
    segments: int = 36  # segments of text, every third one for validation


class Run(NamedTuple):
    """One pruned model, measured on one part of the text."""

    part: str
    pruner: str
    sparsity: float
    arm: str
    epsilon: float | None
    seed: int


class Study:
    """The model and its text."""

    def __init__(self, folder: Path, texts: Sequence[Path], calibration: Sequence[Path], settings: Settings) -> None:
        """Read the model and the text."""
        self.settings = settings
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.analyses = {
            "alpha": tb.analyze(self.model, progress=False),
            "farms": tb.analyze(self.model, windows=tb.FARMS(), progress=False),
        }
        layers = self.analyses["alpha"].layers
        mirror = 2 + max(layer.alpha for layer in layers if math.isfinite(layer.alpha))  # an exponent is above 1
        turned = [replace(layer, alpha=mirror - layer.alpha) for layer in layers]
        self.analyses["inverted"] = replace(self.analyses["alpha"], layers=turned)

        def stream(paths: Sequence[Path]) -> Tensor:
            """All tokens of some files."""
            return torch.cat([tokens for path in paths for tokens in tb.compress.load_tokens(path, folder)])

        text = stream(texts)
        if calibration:
            self.calibration = stream(calibration)
        else:
            self.calibration, text = text.tensor_split(2)
        segments = text.split(WINDOWS * settings.length)[:-1]
        if len(segments) < settings.segments:
            raise SystemExit(f"the text has {len(segments)} segments of {WINDOWS * settings.length} tokens: use more")
        places = torch.linspace(0, len(segments) - 1, settings.segments).long().tolist()
        chosen = [segments[place] for place in places]
        self.parts = {"validation": chosen[::3], "test": [x for place, x in enumerate(chosen) if place % 3]}
        self.outliers = cache(self._outliers)

    def sequences(self, seed: int) -> list[Tensor]:
        """The calibration set of a seed."""
        return tb.compress.draw_calibration([self.calibration], self.settings.samples, self.settings.length, seed)

    def _outliers(self, seed: int) -> dict[str, float]:
        """OWL's fraction of outliers in each block of the dense model."""
        self.model.load_state_dict(self.weights)
        return tb.compress.outlier_ratios(self.model, self.sequences(seed), progress=False)

    def allocation(self, run: Run) -> tb.Allocation:
        """The allocation of a run."""
        analysis = self.analyses.get(run.arm, self.analyses["alpha"])
        if run.arm in {"uniform", "erk"}:
            return tb.allocate_sparsity(analysis, run.sparsity, unit="layer", method=run.arm)
        if run.arm == "owl":
            found = self.outliers(run.seed)
            return tb.allocate_sparsity(analysis, run.sparsity, run.epsilon, method="owl", outliers=found)
        method = "depth" if run.arm == "depth" else "alpha"
        return tb.allocate_sparsity(analysis, run.sparsity, run.epsilon, method=method)

    def losses(self, part: str) -> list[float]:
        """Loss per token of the model in each segment."""
        found = (
            tb.perplexity(self.model, text, length=self.settings.length, progress=False) for text in self.parts[part]
        )
        return [round(math.log(perplexity.value), 5) for perplexity in found]

    def measure(self, run: Run) -> list[float]:
        """Prune a copy of the model, and measure it."""
        plan = self.allocation(run)
        self.model.load_state_dict(self.weights)
        sequences = None if run.pruner == "magnitude" else self.sequences(run.seed)
        tb.prune(self.model, plan, run.pruner, calibration=sequences, progress=False)
        return self.losses(run.part)

    def block_alphas(self) -> dict[str, dict[str, float]]:
        """Mean alpha of every block that has one, by both analyses."""
        found: dict[str, dict[str, float]] = {}
        for name in ("alpha", "farms"):
            blocks: dict[str, list[float]] = {}
            for layer in self.analyses[name].layers:
                if layer.block is not None and math.isfinite(layer.alpha):
                    blocks.setdefault(layer.block, []).append(layer.alpha)
            found[name] = {block: fmean(alphas) for block, alphas in blocks.items()}
        return found


def kept(study: Study, runs: Sequence[Run], folder: Path) -> dict[Run, list[float]]:
    """Losses of all runs; runs that are not in the folder yet are measured and written."""
    results = {}
    with progress_bar("runs", len(runs)) as advance:
        for run in runs:
            path = folder / ("_".join(map(str, run)) + ".json")
            if not path.exists():
                losses = study.measure(run)
                write_atomically(path, json.dumps(losses).encode())
                print(*run, f"perplexity {math.exp(fmean(losses)):.2f}", flush=True)
            results[run] = json.loads(path.read_text(encoding="utf-8"))
            advance(1)
    return results


def tuning_runs(settings: Settings, pruners: Sequence[str]) -> list[Run]:
    """Every epsilon, for every allocation that has one."""
    cells = itertools.product(pruners, settings.sparsities, WITH_EPSILON, settings.epsilons)
    return [Run("validation", pruner, sparsity, arm, epsilon, 0) for pruner, sparsity, arm, epsilon in cells]


def test_runs(settings: Settings, pruners: Sequence[str], tuned: Mapping[Run, list[float]]) -> list[Run]:
    """Every allocation with its best epsilon, for every seed if it depends on the seed."""
    best: dict[tuple[str, float, str], float | None] = {}
    for run in sorted(tuned, key=lambda run: fmean(tuned[run])):
        best.setdefault((run.pruner, run.sparsity, run.arm), run.epsilon)
    runs = []
    for pruner, sparsity, arm in itertools.product(pruners, settings.sparsities, ARMS):
        seeds = settings.seeds if pruner != "magnitude" or arm == "owl" else settings.seeds[:1]
        runs += [Run("test", pruner, sparsity, arm, best.get((pruner, sparsity, arm)), seed) for seed in seeds]
    return runs


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Perplexity of a pruned language model by allocation of sparsity.")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="held-out text, or its tokens")
    parser.add_argument("--calibration", type=Path, nargs="+", default=(), help="calibration text, or its tokens")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=PRUNERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two sparsities, two seeds")
    return parser.parse_args()


def open_runs(given: argparse.Namespace, settings: Settings) -> Path:
    """The folder of the runs, which must have the same settings."""
    folder: Path = given.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    named = {"model": given.model, "text": given.text, "calibration": given.calibration, **asdict(settings)}
    described = json.dumps(named, indent=1, default=str).encode()
    if any(folder.iterdir()) and (given.out / "settings.json").read_bytes() != described:
        raise SystemExit(f"{given.out} contains runs of another model, text or settings: choose another --out")
    write_atomically(given.out / "settings.json", described)
    return folder


def main() -> None:
    """Run, print, write."""
    given = arguments()
    torch.set_num_threads(given.threads)
    pruners = list(given.pruners)
    if "sparsegpt" in pruners and find_spec("llmcompressor") is None:
        print("SparseGPT is left out: it needs llm-compressor, pip install 'tempbalance[prune]'")
        pruners.remove("sparsegpt")
    settings = Settings(sparsities=(0.5, 0.7), seeds=(1, 2)) if given.quick else Settings()
    folder = open_runs(given, settings)
    study = Study(given.model, given.text, given.calibration, settings)
    dense = study.losses("test")
    print(f"dense: perplexity {math.exp(fmean(dense)):.2f} on {sum(map(len, study.parts['test'])):,} tokens")
    tuned = kept(study, tuning_runs(settings, pruners), folder)
    rows = summarize(kept(study, test_runs(settings, pruners, tuned), folder))
    packages = ["torch", "transformers", "tempbalance"] + ["llmcompressor"] * ("sparsegpt" in pruners)
    results: dict[str, Any] = {
        "command": f"python experiments/prune_lm.py --model {given.model.name} ...",
        "settings": asdict(settings),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "parameters": sum(parameter.numel() for parameter in study.model.parameters()),
        "block_alphas": study.block_alphas(),
        "outliers": study.outliers(settings.seeds[0]),
        "dense": dense,
        "tuning": [{**run._asdict(), "perplexity": math.exp(fmean(losses))} for run, losses in tuned.items()],
        "rows": rows,
    }
    write_atomically(given.out / "results.json", json.dumps(results, allow_nan=False).encode() + b"\n")
    write_atomically(given.out / "table.md", table(rows).encode())
    write_atomically(given.out / "plot.svg", plot(rows).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
