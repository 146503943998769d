"""Hostile arguments of public functions: an error of tempbalance, or a result."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tempbalance as tb
from fuzz.corpus import TOKENS, Corpus, make_llama, tiny_analysis, tiny_state, train
from fuzz.mutate import Mutator
from tempbalance.balance import recipes
from tempbalance.compress import Calibration, RecoverySettings, SparsitySettings

_recipe = functools.partial(tb.Recipe, name="x", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=1))


def _balance(**options: Any) -> None:
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = tb.Balancer(optimizer, model, _recipe(every=tb.Every(epochs=1)), **{"steps_per_epoch": 3, **options})
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    balancer.remove()


def _analyze(place: Path, **options: Any) -> None:
    tb.analyze(tiny_state(), progress=False, **options)


def _study(place: Path, **options: Any) -> None:
    tb.study.run(
        train, **{"methods": ["llr"], "out": place / "study", "seeds": 1, "train": False, **options}, progress=False
    )


def _prune(place: Path, **options: Any) -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
    allocation = tb.allocate_sparsity(tb.analyze(model, progress=False), 0.5)
    tb.prune(**{"model": model, "allocation": allocation, **options}, progress=False)


def _save(place: Path, **options: Any) -> None:
    path = options.get("path", place / "a.json")
    if isinstance(path, (str, Path)) and not Path(path).is_absolute():
        path = str(place / path)  # no litter in the working directory
    tiny_analysis().save(path, **({} if "history" not in options else {"history": options["history"]}))


@functools.cache
def _llama() -> Any:
    return make_llama()


def _perplexity(place: Path, **options: Any) -> None:
    tb.perplexity(**{"model": _llama(), "tokens": TOKENS, "length": 8, **options}, progress=False)


def _quantized(place: Path, model: Any, **options: Any) -> None:
    allocation = tb.allocate_bits(tb.analyze(nn.Sequential(nn.Linear(8, 8)), progress=False), 4, method="uniform")
    with tb.compress.quantized(model, allocation, **options):
        pass


def _defaults(function: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


_RECIPES = [
    name for name in recipes.__all__ if inspect.Parameter.empty not in _defaults(getattr(recipes, name)).values()
]

_SCORES = {row.name: 1.0 for row in tiny_analysis().layers}
_ERRORS = {name.removesuffix(".weight"): {"int4": 1.0, "bf16": 0.1} for name in _SCORES}

# Each function with valid arguments, of which some are replaced.
FUNCTIONS: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Hill": (tb.Hill, {"share": 0.5, "min_eigenvalues": 5}),
    "Peak": (tb.Peak, {"bins": 10, "min_eigenvalues": 5}),
    "KS": (tb.KS, {"min_eigenvalues": 5}),
    "AveragedHill": (tb.AveragedHill, {"min_eigenvalues": 5}),
    "FARMS": (tb.FARMS, {"aspect_ratio": 1.0, "rows": 8}),
    "Every": (tb.Every, {"steps": 3}),
    "Every epochs": (tb.Every, {"epochs": 1.5}),
    "Select": (tb.Select, {"include": ("*",), "exclude": (), "embeddings": False, "split": True, "lora": "merged"}),
    "Recipe": (_recipe, {"tolerance": 0.0, "start": 3, "ramp": 3, "kinds": None, "estimator": None, "windows": None}),
    "Linear": (tb.assign.Linear, {"low": 0.5, "high": 1.5}),
    "Sigmoid": (tb.assign.Sigmoid, {}),
    "Rank": (tb.assign.Rank, {"low": 0.5, "high": 1.5}),
    "LayerwiseDecay": (tb.assign.LayerwiseDecay, {"decay": 0.9}),
    "SlowLearner": (tb.assign.SlowLearner, {}),
    "Damped": (tb.assign.Damped, {"assignment": tb.assign.Linear(0.5, 1.5)}),
    **{f"recipes.{name}": (getattr(recipes, name), _defaults(getattr(recipes, name))) for name in _RECIPES},
    "Balancer": (lambda place, **options: _balance(**options), {"steps_per_epoch": 3, "delay": 0}),
    "analyze": (
        _analyze,
        {"estimator": "hill", "windows": None, "select": "*", "device": None, "key": None, "resume": None},
    ),
    "source": (lambda place, source: tb.analyze(source, progress=False), {"source": tiny_state()}),
    "open_checkpoint": (
        lambda place, source, **options: tb.open_checkpoint(source, **options).close(),
        {"source": "x", "revision": None, "key": None},
    ),
    "weight_spectrum": (tb.weight_spectrum, {"weight": torch.ones(4, 4)}),
    "allocate_sparsity": (
        tb.allocate_sparsity,
        {
            "analysis": tiny_analysis(),
            "sparsity": 0.5,
            "epsilon": 0.3,
            "unit": "block",
            "method": "alpha",
            "group": None,
        },
    ),
    "allocate_bits": (
        tb.allocate_bits,
        {"analysis": tiny_analysis(), "bits": 3, "widths": (2, 3, 4), "gamma": 1.0, "unit": "layer"},
    ),
    "allocate_bits of formats": (
        tb.allocate_bits,
        {"analysis": tiny_analysis(), "bits": 5, "widths": ("int4", "bf16"), "method": "error", "errors": _ERRORS},
    ),
    "allocate_ranks": (tb.allocate_ranks, {"analysis": tiny_analysis(), "rank": 4, "method": "uniform"}),
    "allocate_trainable": (
        tb.allocate_trainable,
        {"analysis": tiny_analysis(), "share": 0.5, "method": "snr", "scores": _SCORES},
    ),
    "quantization_errors": (
        tb.compress.quantization_errors,
        {"source": tiny_state(), "formats": ("int4",), "calibration": None, "measure": "noise", "seed": 0},
    ),
    "find_format": (tb.compress.find_format, {"name": "nvfp4"}),
    "quantized": (_quantized, {"model": nn.Sequential(nn.Linear(8, 8)), "group_size": 4}),
    "compare": (tb.compare, {"before": tiny_analysis(), "after": tiny_analysis()}),
    "save": (_save, {"path": "a.json", "history": ()}),
    "Analysis.load": (lambda place, path: tb.Analysis.load(path), {"path": "x.json"}),
    "Allocation.load": (lambda place, path: tb.Allocation.load(path), {"path": "x.json"}),
    "prune": (_prune, {"method": "magnitude", "calibration": None, "allocation": None}),
    "perplexity": (_perplexity, {"tokens": TOKENS, "stride": None, "length": 8, "bits": None, "device": None}),
    "draw_calibration": (
        tb.compress.draw_calibration,
        {"documents": [TOKENS], "samples": 2, "length": 8, "seed": 0},
    ),
    "load_tokens": (lambda place, path: tb.compress.load_tokens(path), {"path": "x.npz"}),
    "Calibration": (
        lambda place, **options: Calibration(**options).draw(),
        {"tokens": [TOKENS], "samples": 2, "length": 8, "seed": 0},
    ),
    "RecoverySettings": (RecoverySettings, {"rank": 8, "lr": 1e-4, "epochs": 1, "batch": 1, "length": 8, "seed": 0}),
    "SparsitySettings": (
        SparsitySettings,
        {
            "sparsity": 0.5,
            "method": "alpha",
            "epsilon": 0.3,
            "unit": "block",
            "group": None,
            "estimator": "hill",
            "windows": None,
        },
    ),
    "study": (
        _study,
        {
            "methods": ["llr"],
            "seeds": 1,
            "first_seed": 0,
            "lr": (0.1,),
            "tuning_seeds": 1,
            "baseline": "plain",
            "parameters": {},
        },
    ),
    "pareto_sample": (tb.testing.pareto_sample, {"n": 10, "alpha": 2.0, "xmin": 1.0, "seed": 0}),
    "matrix_with_spectrum": (
        tb.testing.matrix_with_spectrum,
        {"eigenvalues": torch.ones(4), "shape": (4, 4), "seed": 0},
    ),
}
_WITH_PLACE = {"save", "analyze", "study", "prune", "perplexity", "Calibration", "Balancer", "open_checkpoint"}
_WITH_PLACE |= {"quantized", "source", "Analysis.load", "Allocation.load", "load_tokens"}
_HUGE = {10**20, 10**400, 2**63, 2**31}


def arguments(mutator: Mutator, _corpus: Corpus, place: Path) -> None:
    """Call a public function with one or two hostile arguments."""
    name = mutator.choice(sorted(FUNCTIONS))
    function, valid = FUNCTIONS[name]
    given = dict(valid)
    for key in mutator.sample(sorted(given), min(len(given), mutator.choice([1, 1, 1, 2]))):
        given[key] = mutator.value()
    if name.startswith(("pareto", "draw", "Calibration")) and _HUGE & {
        each for each in given.values() if type(each) is int
    }:
        return  # is meant as it is given: as large as the memory
    try:
        function(*([place] if name in _WITH_PLACE else []), **given)
    except tb.TempBalanceError as error:
        assert str(error), "an error without a message"
    except Exception as error:
        raise AssertionError(f"{name}: {error!r:.60} for {given!r:.300}") from error


TARGETS = {arguments: 1}
