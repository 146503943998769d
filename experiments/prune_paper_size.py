"""AlphaPruning and FARMS at the size of their papers: LLaMA-7B pruned to 70 to 85 %, on one GPU, in short pieces.

    python experiments/prune_paper_size.py --model DIR --text wikitext-2/test.txt --calibration c4.jsonl --out FILE.json
        [--minutes 9] [--device cuda] [--pruners ...] [--sparsities ...] [--collect]

The model is any folder of a LLaMA of 7 billion parameters. Calibration is 128 sequences of 2,048 tokens, perplexity is
measured on windows of 2,048 tokens of the text. Methods: ``uniform``; ``owl`` (epsilon 0.08); ``alphapruning`` (the
``Peak`` alpha of whole matrices) and ``farms`` (100 windows of 2,000 x 2,000), with the epsilon of the released code
for each criterion and sparsity; ``inverted`` and ``shuffled`` are controls of ``farms``. Alphas are ours, not those of
the released code (see ``released.PeakAsReleased``).

It stops with status 75 after the block or the cell in which ``--minutes`` are over; the same command resumes. Cells
are in ``--out``, alphas in ``FILE.cache``. Until all is done:

    while python experiments/prune_paper_size.py ...; [ $? -eq 75 ]; do :; done

``--collect`` prints the table beside the papers' numbers. ``--rehearse`` runs all code on a CPU in seconds, on a tiny
model and random tokens, one cell a piece, and checks that the numbers are those of a run without pauses. Not run at
its size yet: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

import tempbalance as tb
from tempbalance._files import write_atomically
from tempbalance.compress import load_causal_lm, outlier_ratios
from tempbalance.errors import TempBalanceError
from tempbalance.testing import matrix_with_spectrum, pareto_quantiles

PAUSED = 75  # exit status, as of run_paper_size.py
SPARSITIES = (0.7, 0.75, 0.8, 0.85)
METHODS = ("uniform", "owl", "alphapruning", "farms", "inverted", "shuffled")
EPSILONS = {  # of the released code of FARMS for LLaMA-7B, by sparsity
    "magnitude": {"alphapruning": (0.3, 0.3, 0.2, 0.15), "farms": (0.6, 0.4, 0.3, 0.2)},
    "wanda": {"alphapruning": (0.2, 0.2, 0.2, 0.1), "farms": (0.3, 0.3, 0.3, 0.15)},
    "sparsegpt": {"alphapruning": (0.2, 0.2, 0.1, 0.15), "farms": (0.2, 0.2, 0.2, 0.2)},
}
PUBLISHED = {  # WikiText perplexity of LLaMA-7B; dense 5.68. OWL's README, AlphaPruning (table 2), FARMS (abstract)
    ("magnitude", 0.7, "uniform"): 48419.12,
    ("wanda", 0.7, "uniform"): 85.77,
    ("wanda", 0.7, "owl"): 24.55,
    ("wanda", 0.7, "alphapruning"): 23.86,
    ("sparsegpt", 0.7, "uniform"): 26.30,
    ("sparsegpt", 0.7, "owl"): 19.49,
    ("sparsegpt", 0.7, "alphapruning"): 18.54,
    ("sparsegpt", 0.8, "alphapruning"): 96.02,
    ("sparsegpt", 0.8, "farms"): 79.42,
}


class Pause(Exception):
    """The time is over."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the rehearsal makes smaller.

    Attributes:
        samples: Number of calibration sequences.
        length: Tokens of a sequence, and of a window of the perplexity.
        rows: Rows of a FARMS window.
        windows: FARMS windows for each side.
    """

    samples: int = 128
    length: int = 2048
    rows: int = 2000
    windows: int = 10


class Subject:
    """A model with its texts, and what is known of its blocks."""

    def __init__(self, given: argparse.Namespace, scale: Scale, deadline: float) -> None:
        """Read the texts; the model is loaded when a cell needs it."""
        self.given, self.scale, self.deadline = given, scale, deadline
        self.held_out = tb.compress.load_tokens(given.text, given.model)
        calibration = tb.compress.load_tokens(given.calibration, given.model)
        self.tokens = tb.compress.draw_calibration(calibration, scale.samples, scale.length, 0)

    @cached_property
    def model(self) -> Any:
        """The dense model."""
        return load_causal_lm(self.given.model, self.given.device)

    @cached_property
    def dense(self) -> dict[str, torch.Tensor]:
        """The weights before pruning."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    def check_time(self) -> None:
        """Raise a Pause if the time is over."""
        if time.monotonic() > self.deadline:
            raise Pause

    def analysis(self, windows: tb.FARMS | None) -> tb.Analysis:
        """Analyse the model block by block, so that it can be stopped between two; the rows are in the cache."""
        cache = self.given.out.with_suffix(".cache")
        options: dict[str, Any] = {"estimator": "peak", "windows": windows, "device": self.given.device}
        for block in range(self.model.config.num_hidden_layers):
            known = count_files(cache)
            tb.analyze(self.given.model, select=f"model.layers.{block}.*", cache=cache, progress=False, **options)
            if count_files(cache) > known:
                self.check_time()
        return tb.analyze(self.given.model, select="model.layers.*", cache=cache, **options)

    @cached_property
    def analyses(self) -> dict[str, tb.Analysis]:
        """The analysis for each kind of alpha."""
        whole = self.analysis(None)
        farms = self.analysis(tb.FARMS(rows=self.scale.rows, windows=self.scale.windows))
        blocks = list(dict.fromkeys(layer.block for layer in farms.layers))
        order = dict(zip(blocks, random.Random(0).sample(blocks, len(blocks)), strict=True))
        alphas = {(layer.block, layer.name.removeprefix(f"{layer.block}.")): layer.alpha for layer in farms.layers}
        return {
            "alphapruning": whole,
            "farms": farms,
            "inverted": with_alphas(farms, [10 - layer.alpha for layer in farms.layers]),  # upside down
            "shuffled": with_alphas(
                farms, [alphas[order[row.block], row.name.removeprefix(f"{row.block}.")] for row in farms.layers]
            ),
        }

    @cached_property
    def outliers(self) -> dict[str, float]:
        """OWL's fraction of outliers in each block."""
        return outlier_ratios(self.model, self.tokens)

    def perplexity(self, model: Any) -> float:
        """Perplexity on the held-out text."""
        return tb.perplexity(model, self.held_out, length=self.scale.length, progress=False).value

    def allocation(self, pruner: str, sparsity: float, method: str) -> tb.Allocation:
        """The allocation of a cell."""
        if method == "uniform":
            return tb.allocate_sparsity(self.analyses["alphapruning"], sparsity)
        if method == "owl":
            analysis = self.analyses["alphapruning"]
            return tb.allocate_sparsity(analysis, sparsity, method="owl", outliers=self.outliers)
        name = method if method == "alphapruning" else "farms"
        epsilon = EPSILONS[pruner][name][SPARSITIES.index(sparsity)]
        return tb.allocate_sparsity(self.analyses[method], sparsity, epsilon, method="alpha")

    def cell(self, pruner: str, sparsity: float, method: str) -> dict[str, Any]:
        """Prune, measure the perplexity, and restore the model."""
        began, allocation = time.perf_counter(), self.allocation(pruner, sparsity, method)
        dense = self.dense
        calibration = None if pruner == "magnitude" else self.tokens
        tb.prune(self.model, allocation, pruner, calibration=calibration)
        perplexity = self.perplexity(self.model)
        self.model.load_state_dict(dense)
        blocks = {unit.name: round(unit.value, 4) for unit in allocation.units}
        return {"perplexity": perplexity, "sparsities": blocks, "seconds": round(time.perf_counter() - began, 1)}


def count_files(folder: Path) -> int:
    """Count the files below a folder."""
    return sum(path.is_file() for path in folder.rglob("*"))


def with_alphas(analysis: tb.Analysis, alphas: Sequence[float]) -> tb.Analysis:
    """Return an analysis with other alphas."""
    rows = [replace(row, alpha=alpha) for row, alpha in zip(analysis.layers, alphas, strict=True)]
    return replace(analysis, layers=rows)


def run(given: argparse.Namespace, scale: Scale) -> bool:
    """Run missing cells until the time is over; return whether all are done."""
    subject = Subject(given, scale, time.monotonic() + 60 * given.minutes)
    results = read(given.out)
    settings = {"model": str(given.model), "text": str(given.text), "calibration": str(given.calibration)}
    if results.setdefault("settings", settings) != settings:
        raise SystemExit(f"{given.out} has cells of other settings: choose another --out")
    results.setdefault("versions", {"torch": torch.__version__, "transformers": transformers.__version__})
    cells = results.setdefault("cells", {})
    wanted = {"|".join(map(str, cell)): cell for cell in itertools.product(given.pruners, given.sparsities, METHODS)}
    try:
        for key, cell in wanted.items():
            if key in cells:
                continue
            if "dense" not in results:
                results["dense"] = subject.perplexity(subject.model)
            cells[key] = subject.cell(*cell)
            write_atomically(given.out, json.dumps(results, indent=1).encode() + b"\n")
            print(key, f"{cells[key]['perplexity']:.2f}", f"{cells[key]['seconds']} s", flush=True)
            subject.check_time()
    except Pause:
        return wanted.keys() <= cells.keys()
    return True


def read(file: Path) -> dict[str, Any]:
    """Read the results; none if there is no file yet."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def table(results: Mapping[str, Any]) -> str:
    """Write the cells in Markdown, beside the papers' numbers."""
    lines = ["| pruned by | sparsity | allocation | perplexity | the papers |", "|---" * 5 + "|"]
    for key, cell in results.get("cells", {}).items():
        pruner, sparsity, method = key.split("|")
        paper = PUBLISHED.get((pruner, float(sparsity), method), "")
        lines.append(f"| {pruner} | {float(sparsity):.0%} | {method} | {cell['perplexity']:.2f} | {paper} |")
    return "\n".join(lines)


def rehearse() -> None:
    """Run all code on a tiny model.

    Raises:
        SystemExit: A number differs from that of a run without pauses.
    """
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=3, max_position_embeddings=64)
    scale = Scale(samples=4, length=32, rows=64, windows=2)
    with tempfile.TemporaryDirectory() as folder:
        model, tokens = Path(folder) / "model", Path(folder) / "tokens.npy"
        tiny = transformers.LlamaForCausalLM(config)
        for block, layer in enumerate(tiny.model.layers):  # alphas that differ
            for linear in (each for each in layer.modules() if isinstance(each, torch.nn.Linear)):
                spectrum = pareto_quantiles(min(linear.weight.shape), 2.0 + block)
                linear.weight.data = matrix_with_spectrum(spectrum, tuple(linear.weight.shape)).float()
        tiny.save_pretrained(model)
        write_tokens(tokens)
        options = ["--model", str(model), "--text", str(tokens), "--calibration", str(tokens), "--device", "cpu"]
        options += ["--pruners", "magnitude", "wanda", "--sparsities", "0.7"]
        whole, pieces = (parse([*options, "--out", f"{folder}/{name}.json"]) for name in ("whole", "pieces"))
        run(whole, scale)
        pieces.minutes, count = 0.0, 1
        while not run(pieces, scale):
            count += 1
        found = [
            {key: (cell["perplexity"], cell["sparsities"]) for key, cell in read(each.out)["cells"].items()}
            for each in (whole, pieces)
        ]
    if len({perplexity for perplexity, _ in found[0].values()}) != len(found[0]):
        raise SystemExit(f"two methods give the same: {found[0]}")
    if found[0] != found[1]:
        raise SystemExit(f"in pieces {found[1]}, but {found[0]} without pauses")
    print(f"{len(found[0])} cells in {count} pieces, as without pauses")


def write_tokens(file: Path) -> None:
    """Write random token ids."""
    import numpy as np

    np.save(file, np.random.default_rng(0).integers(64, size=600))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Perplexity of LLaMA-7B pruned by AlphaPruning and FARMS.")
    parser.add_argument("--model", type=Path, help="folder of a LLaMA")
    parser.add_argument("--text", type=Path, help="held-out text: the test file of WikiText-2 in the papers")
    parser.add_argument("--calibration", type=Path, help="calibration text: a part of C4 in the papers")
    parser.add_argument("--out", type=Path, default=Path("prune_paper_size.json"), help="the results, as JSON")
    parser.add_argument("--pruners", nargs="+", choices=[*EPSILONS], default=[*EPSILONS])
    parser.add_argument("--sparsities", nargs="+", type=float, choices=SPARSITIES, default=SPARSITIES)
    parser.add_argument("--minutes", type=float, default=9.0, help="length of a piece (default: 9)")
    parser.add_argument("--device", default="cuda", help="where to compute (default: cuda)")
    parser.add_argument("--collect", action="store_true", help="print the table of the cells so far")
    parser.add_argument("--rehearse", action="store_true", help="run all code on a CPU in seconds, without data")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 0 if all cells are done, 75 if the time is over, 1 after an error."""
    given = parse(argv)
    if given.rehearse:
        rehearse()
        return 0
    if given.collect:
        print(table(read(given.out)))
        return 0
    try:
        missing = [name for name in ("model", "text", "calibration") if getattr(given, name) is None]
        if missing:
            raise TempBalanceError(f"--{missing[0]} is missing; see --help")
        if given.device.startswith("cuda") and not torch.cuda.is_available():
            raise TempBalanceError("there is no CUDA device: --rehearse runs all code on a CPU; see --device")
        done = run(given, Scale())
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(read(given.out)) if done else "the time is over: run the same command again to resume")
    return 0 if done else PAUSED


if __name__ == "__main__":
    sys.exit(main())
