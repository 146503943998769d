"""Does a searched allocation of sparsity pay? Perplexity on held-out text, by model, criterion, sparsity and method.

    python experiments/prune_search.py --model NAME=DIR [...] --text NAME=FILE [...] [--calibration NAME=FILE ...]
        --out FILE.json [--pruners ...] [--sparsities ...] [--methods ...] [--recover] [--generations N]
        [--dtype bfloat16] [--collect] [--page FILE]

A cell is a model, a pruning criterion, a sparsity and a method of allocation. Models are Hugging Face folders (of a
GGUF file: ``folder_of_gguf.py``). The text is cut into two halves: calibration sequences are drawn from the first one
(or from ``--calibration``), perplexity is measured on segments of the second one, which no method sees. Every method
with a parameter chooses it from its grid on the calibration text (epsilon from four, the beta of ATP from ten), by the
divergence that the search uses, too.

- ``uniform``; ``erk``: by shape (Evci et al. 2020); ``owl`` (Yin et al. 2024); ``atp`` (2502.14770);
- ``hill``, ``peak``, ``farms``: AlphaPruning with these alphas; ``inverted``: the Hill alpha upside down, a control;
- ``simple``: of uniform, ERK, OWL, ATP and AlphaPruning with default parameters, the best on the calibration text;
- ``search_layer``, ``search_block``: searched from the best simple method with its default parameters.

SparseGPT updates the remaining weights, so allocations for it are those for Wanda, by whose scores all methods choose.

Every cell is written to ``--out`` when it is done, so the same command resumes; a search that was stopped resumes in
``FILE.searches``. Then it prints tables, with paired 95 % intervals over the segments against uniform and OWL.
``--collect`` prints those of the cells so far; ``--page`` writes them to a page.

With ``--recover`` the pruned model is fine-tuned by ``tb.recover`` (LoRA) before it is measured: one epoch on 512 other
sequences of the calibration text, at the best of four rates on text that is not trained on. Choose another ``--out``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from pages import fill
from prune_lm_report import NAMES, plot, table

import tempbalance as tb
from tempbalance._files import write_atomically
from tempbalance.compress import (
    RecoverySettings,
    SearchSettings,
    measure_sparsity,
    outlier_ratios,
    score_allocations,
    search_sparsity,
)
from tempbalance.compress.pruning.pruner import Criterion
from tempbalance.study import paired

PRUNERS = ("magnitude", "wanda", "sparsegpt")
SPARSITIES = (0.5, 0.6, 0.7, 0.8)
SIMPLE = ("uniform", "erk", "owl", "atp", "hill", "peak", "farms", "inverted", "simple")
METHODS = (*SIMPLE, "search_block", "search_layer")
RECOVERY = {"samples": 512, "batch": 8, "lr": (1e-3, 3e-3, 1e-2, 3e-2)}  # one epoch
TUNING = 8192  # tokens at the end of the calibration text, for the choice of the rate
ARMS = {"hill": "alpha"}  # in the report
SHOWN = ("uniform", "owl", "atp", "alpha", "simple", "search_block", "search_layer")  # in its table; the figure has all
EPSILONS = {"owl": (0.02, 0.04, 0.08, 0.16)}  # of the others:
EPSILON = (0.05, 0.1, 0.2, 0.4)
SETTINGS = {"samples": 64, "length": 256, "segments": 48, "windows": 2, "seed": 0, "generations": 100, "tokens": 4096}


class Subject:
    """A model with its calibration text and its held-out text."""

    def __init__(self, folder: Path, text: Path, calibration: Path | None, given: argparse.Namespace) -> None:
        """Read the text; the model is loaded when a cell needs it."""
        self.folder, self.recover = folder, given.recover
        self.dtype, self.generations = getattr(torch, given.dtype), given.generations
        held_out = torch.cat(tb.compress.load_tokens(text, folder))
        if calibration is None:
            first, held_out = held_out.tensor_split(2)
        else:
            first = torch.cat(tb.compress.load_tokens(calibration, folder))
        self.tokens = tb.compress.draw_calibration([first], SETTINGS["samples"], SETTINGS["length"], SETTINGS["seed"])
        training, self.tuning = first.split([len(first) - TUNING, TUNING])
        self.training = tb.compress.draw_calibration([training], RECOVERY["samples"], SETTINGS["length"], seed=1)
        segments = held_out.split(SETTINGS["windows"] * SETTINGS["length"])[:-1]
        if len(segments) < SETTINGS["segments"]:
            raise SystemExit(f"{text} has {len(segments)} segments after calibration, not {SETTINGS['segments']}")
        places = torch.linspace(0, len(segments) - 1, SETTINGS["segments"]).long().tolist()
        self.segments = [segments[place] for place in places]
        self.measured: dict[tuple[Criterion, float], dict[str, tb.Allocation]] = {}
        self.allocated: dict[tuple[Criterion, float, str], tb.Allocation] = {}

    @cached_property
    def model(self) -> Any:
        """The dense model."""
        return transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()

    @cached_property
    def analyses(self) -> dict[str, tb.Analysis]:
        """The analysis for each kind of alpha."""
        hill = tb.analyze(self.model, progress=False)
        mirror = 2 + max(layer.alpha for layer in hill.layers if math.isfinite(layer.alpha))  # an exponent is above 1
        return {
            "hill": hill,
            "peak": tb.analyze(self.model, estimator="peak", progress=False),
            "farms": tb.analyze(self.model, windows=tb.FARMS(), progress=False),
            "inverted": replace(hill, layers=[replace(layer, alpha=mirror - layer.alpha) for layer in hill.layers]),
        }

    @cached_property
    def outliers(self) -> dict[str, float]:
        """OWL's fraction of outliers in each block."""
        return outlier_ratios(self.model, self.tokens, progress=False)

    def losses(self, model: Any) -> list[float]:
        """Loss per token of a model in each held-out segment."""
        found = (tb.perplexity(model, text, length=SETTINGS["length"], progress=False) for text in self.segments)
        return [round(math.log(each.value), 5) for each in found]

    def simple(self, criterion: Criterion, sparsity: float) -> dict[str, tb.Allocation]:
        """The simple methods with their default parameters, the best on the calibration text first."""
        key = criterion, sparsity
        if key not in self.measured:
            self.measured[key] = measure_sparsity(
                self.model,
                sparsity,
                self.tokens,
                criterion,
                tokens=SETTINGS["tokens"],
                analysis=self.analyses["hill"],
                progress=False,
            )
        return self.measured[key]

    def allocation(self, criterion: Criterion, sparsity: float, method: str, folder: Path) -> tb.Allocation:
        """Allocate by the scores of a criterion."""
        hill = self.analyses["hill"]
        if method in {"uniform", "erk"}:
            return tb.allocate_sparsity(hill, sparsity, unit="layer", method=method)
        if method in {"atp", "simple"}:
            found = self.simple(criterion, sparsity)
            return found["atp"] if method == "atp" else next(iter(found.values()))
        if method.startswith("search_"):
            settings = SearchSettings(
                generations=self.generations, tokens=SETTINGS["tokens"], seed=SETTINGS["seed"], folder=folder
            )
            unit: Any = method.removeprefix("search_")
            return search_sparsity(self.model, sparsity, self.tokens, criterion, settings, unit=unit, analysis=hill)
        candidates = {}
        for epsilon in EPSILONS.get(method, EPSILON):
            analysis, given = self.analyses.get(method, hill), {"outliers": self.outliers} if method == "owl" else {}
            name = "owl" if method == "owl" else "alpha"
            candidates[epsilon] = tb.allocate_sparsity(analysis, sparsity, epsilon, method=name, **given)
        named = {str(epsilon): allocation for epsilon, allocation in candidates.items()}
        scores = score_allocations(self.model, named, self.tokens, criterion, tokens=SETTINGS["tokens"], progress=False)
        return named[min(scores, key=lambda name: scores[name].kl)]

    def cell(self, pruner: str, sparsity: float, method: str, folder: Path) -> dict[str, Any]:
        """Allocate, prune a copy, and measure it on the held-out text."""
        criterion: Criterion = "magnitude" if pruner == "magnitude" else "wanda"  # also for SparseGPT
        key = criterion, sparsity, method
        seconds = None  # of an allocation that was found before
        if key not in self.allocated:
            searched, started = folder / "_".join(map(str, key)), time.perf_counter()
            resumed = searched.exists()
            self.allocated[key] = self.allocation(*key, searched)
            seconds = None if resumed else round(time.perf_counter() - started, 1)
        allocation = self.allocated[key]
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        tokens = None if pruner == "magnitude" else self.tokens
        tb.prune(self.model, allocation, pruner, calibration=tokens, progress=False)
        measured = self.recovered() if self.recover else {"losses": self.losses(self.model)}
        self.model.load_state_dict(state)
        return {
            "method": allocation.method,
            "seconds": seconds,
            **measured,
            "compared": {score.method: score.kl for score in allocation.compared},
            "sparsities": {layer.name: round(layer.sparsity, 4) for layer in allocation.layers},
        }

    def recovered(self) -> dict[str, Any]:
        """Recover the pruned model at each rate; return the losses at the rate that is the best on other text."""
        pruned = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        found = {}
        for lr in RECOVERY["lr"]:
            self.model.load_state_dict(pruned)
            settings = RecoverySettings(lr=lr, batch=RECOVERY["batch"], length=SETTINGS["length"])
            tb.recover(self.model, self.training, settings, progress=False)
            loss = tb.perplexity(self.model, [self.tuning], length=SETTINGS["length"], progress=False).value
            found[loss] = {"lr": lr, "losses": self.losses(self.model)}
        return found[min(found)]


def rows_of(cells: Mapping[str, Mapping[str, Any]], model: str, base: str) -> list[dict[str, Any]]:
    """One row per cell of a model, with the change of its perplexity from that of another method."""
    rows = []
    for key, cell in cells.items():
        name, pruner, sparsity, method = key.split("|")
        if name != model:
            continue
        row = {"pruner": pruner, "sparsity": float(sparsity), "arm": ARMS.get(method, method)}
        row["perplexity"] = math.exp(fmean(cell["losses"]))
        other = cells.get("|".join([name, pruner, sparsity, base]))
        if other is not None and base != method:
            found = paired(other["losses"], cell["losses"])
            row["change"] = [math.expm1(-gain) for gain in (found.mean, found.high, found.low)]
        rows.append(row)
    return rows


def report(results: Mapping[str, Any]) -> dict[str, str]:
    """Write the tables of each model, and one of all cells, in Markdown."""
    cells, parts = results["cells"], {"cells": counts(results)}
    for model, losses in results["dense"].items():
        shown = [row for row in rows_of(cells, model, "uniform") if row["arm"] in SHOWN]
        others = rows_of(cells, model, "owl")
        searches = [row for row in others if row["arm"].startswith("search") and "change" in row]
        tables = [f"Before pruning {math.exp(fmean(losses)):.1f}.", table(shown)]
        tables += ["Against OWL:", table(searches)] if searches else []
        parts[model] = "\n\n".join(each.rstrip() for each in tables)
    return parts


def counts(results: Mapping[str, Any]) -> str:
    """Count the cells in which each allocation is better or worse than uniform and than OWL, by its 95 % interval."""
    bases = ("uniform", "owl")
    lines = [
        f"| allocation | cells | {' | '.join(f'better than {NAMES[base]} | worse' for base in bases)} |",
        "|---" * 6 + "|",
    ]
    every = {
        base: [row for model in results["dense"] for row in rows_of(results["cells"], model, base)] for base in bases
    }
    for arm in (arm for arm in NAMES if any(row["arm"] == arm for row in every["uniform"])):
        of_arm = [[row for row in every[base] if row["arm"] == arm] for base in bases]
        found = [[row["change"] for row in rows if "change" in row] for rows in of_arm]
        cells = [
            str(count)
            for changes in found
            for count in (sum(high < 0 for _, _, high in changes), sum(low > 0 for _, low, _ in changes))
        ]
        lines.append(f"| {NAMES[arm]} | {len(of_arm[0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(page: Path, results: Mapping[str, Any]) -> None:
    """Fill the markers of a page with the tables, and write a figure beside it for each model with all methods."""
    text, recovered = page.read_text(encoding="utf-8"), "recovery" in results["settings"]
    for name, content in report(results).items():
        if name != "cells" or results["settings"] == SETTINGS:  # cells of other settings are not counted with these
            text = fill(text, f"{name} recovered" if recovered else name, content)
    if results["settings"] == SETTINGS:
        for model in results["dense"]:
            drawn = plot(rows_of(results["cells"], model, "uniform"))
            write_atomically(page.with_name(f"prune_search_{model}.svg"), drawn.encode())
    write_atomically(page, text.encode())


def content_of(results: Mapping[str, Any]) -> bytes:
    """Write the results as JSON, one cell a line."""
    *head, (_, cells) = results.items()
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head]
    listed = ",\n".join(f"  {json.dumps(key)}: {json.dumps(cell)}" for key, cell in cells.items())
    return "\n".join(["{", *lines, ' "cells": {', listed, " }", "}", ""]).encode()


def named_paths(given: list[str]) -> dict[str, Path]:
    """Paths by name."""
    return {name: Path(path) for name, _, path in (each.partition("=") for each in given)}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Perplexity of pruned language models by allocation of sparsity.")
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=DIR", help="Hugging Face folders")
    parser.add_argument("--text", nargs="+", required=True, metavar="NAME=FILE", help="a text, or tokens, per model")
    parser.add_argument("--calibration", nargs="+", default=[], metavar="NAME=FILE", help="other text to calibrate on")
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=PRUNERS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--recover", action="store_true", help="measure after recovery")
    parser.add_argument("--generations", type=int, default=SETTINGS["generations"], help="of a search (default: 100)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--page", type=Path, help="page to fill with the tables; figures are written beside it")
    return parser.parse_args()


def run(given: argparse.Namespace, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Run the cells that are missing."""
    texts, calibrations = named_paths(given.text), named_paths(given.calibration)
    for name, folder in named_paths(given.model).items():
        subject = Subject(folder, texts[name], calibrations.get(name), given)
        if name not in results["dense"]:
            results["dense"][name] = subject.losses(subject.model)
        for pruner, sparsity, method in itertools.product(given.pruners, given.sparsities, given.methods):
            key = f"{name}|{pruner}|{sparsity}|{method}"
            if key not in results["cells"]:
                results["cells"][key] = subject.cell(
                    pruner, sparsity, method, given.out.with_suffix(".searches") / name
                )
                save()
                losses = results["cells"][key]["losses"]
                print(key, f"{math.exp(fmean(losses)):.2f}", f"{results['cells'][key]['seconds']} s", flush=True)


def main() -> None:
    """Run, write, print."""
    given = arguments()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    settings: dict[str, Any] = SETTINGS | {"generations": given.generations}
    if given.dtype != "float32":
        settings["dtype"] = given.dtype
    if given.recover:
        settings["recovery"] = {**RECOVERY, "lr": [*RECOVERY["lr"]]}
    results: dict[str, Any] = {"settings": settings, "versions": versions, "dense": {}, "cells": {}}
    if given.out.exists():
        results = json.loads(given.out.read_text(encoding="utf-8"))
        if results["settings"] != settings:
            raise SystemExit(f"{given.out} has cells of other settings: choose another --out")
    if not given.collect:
        run(given, results, lambda: write_atomically(given.out, content_of(results)))
    if given.page is not None:
        write_page(given.page, results)
    print("\n\n".join(report(results).values()))


if __name__ == "__main__":
    main()
