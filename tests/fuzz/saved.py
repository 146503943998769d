"""Damaged results, plans, tokens, studies and states: a typed error, or a value that is valid everywhere it is used."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import tempbalance as tb
from fuzz.corpus import Corpus, interrupted, tiny_analysis, train
from fuzz.files import check_analysis
from fuzz.mutate import Mutator
from tempbalance.balance.state import KEY, BalanceState
from tempbalance.compress.export.alphapruning_npy import export_npy
from tempbalance.report.analysis_report import print_analysis
from tempbalance.study.study_folder import collect_folder


def attempt(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a function returns, or None after an error of tempbalance."""
    try:
        return function(*arguments, **options)
    except tb.TempBalanceError:
        return None


def _damaged(mutator: Mutator, corpus: Corpus, place: Path, name: str) -> Path:
    path = corpus.copy(name, place)
    if mutator.random() < 0.05:
        mutator.place(path)
    else:
        path.write_bytes(mutator.json(path.read_bytes()))
    return path


def analysis(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Load a damaged analysis, and use it if it is accepted."""
    path = _damaged(mutator, corpus, place, "analysis.json")
    found = attempt(tb.Analysis.load, path)
    if found is None:
        return
    check_analysis(found)
    found.save(place / "again.json")
    tb.Analysis.load(place / "again.json").save(place / "once more.json")
    assert (place / "once more.json").read_bytes() == (place / "again.json").read_bytes()
    attempt(tb.compare, tiny_analysis(), found)
    attempt(tb.compare, found, found)
    use = mutator.choice(
        [
            lambda: found.save(place / "a.csv"),
            lambda: print_analysis(Console(file=io.StringIO()), found),
            lambda: attempt(tb.allocate_sparsity, found, 0.5),
            lambda: attempt(tb.allocate_bits, found, 3),
            lambda: attempt(tb.allocate_ranks, found, 4),
        ]
    )
    use()


def allocation(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Load a damaged allocation, and use it if it is accepted."""
    name = mutator.choice(["sparsity.json", "sparsity.json", "bits.json", "rank.json"])
    found = attempt(tb.Allocation.load, _damaged(mutator, corpus, place, name))
    if found is None:
        return
    found.save(place / "again.json")
    tb.Allocation.load(place / "again.json").save(place / "once more.json")
    assert (place / "once more.json").read_bytes() == (place / "again.json").read_bytes()
    use = mutator.choice(
        [
            lambda: attempt(export_npy, found, place / "a.npy"),
            lambda: attempt(tb.compress.export_llmcompressor, found, place / "a.yaml"),
            lambda: attempt(tb.compress.lora_config, found),
            lambda: _prune(found),
        ]
    )
    use()


def _prune(found: tb.Allocation) -> None:
    model = nn.ModuleDict({"h": nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(24, 24, bias=False)}) for _ in range(3))})
    achieved = attempt(tb.prune, model, found, progress=False)
    for name, fraction in (achieved or {}).items():
        assert abs(fraction - found[name]) < 1e-9, (name, fraction, found[name])


def resume_file(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Resume an analysis from a damaged file."""
    source = corpus.copy("model.safetensors", place)
    partial = place / "a.json.partial"
    interrupted(source, partial)
    if mutator.random() < 0.1:
        mutator.place(partial)
    else:
        partial.write_bytes(mutator.json_lines(partial.read_bytes()))
    found = attempt(tb.analyze, source, resume=partial, progress=False)
    if found is not None:
        check_analysis(found)
        assert {row.name for row in found.layers} | {row.name for row in found.skipped} == {
            *("layers.0.fc.weight", "layers.1.fc.weight", "head.weight")
        }


def study(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Summarize, collect and resume a study of which one file is damaged."""
    folder = corpus.copy("study", place)
    file = mutator.choice(sorted(each for each in folder.rglob("*.json")))
    if mutator.random() < 0.1:
        mutator.place(file)
    else:
        file.write_bytes(mutator.json(file.read_bytes()))
    options: dict[str, Any] = {"lr": (0.1, 0.2), "tuning_seeds": 1, "train": False, "progress": False}
    summary = attempt(tb.study.run, train, ["model_balancing_sciml"], folder, seeds=3, **options)
    if summary is not None:
        assert json.dumps(summary.to_dict(), default=str)
    attempt(collect_folder, folder)


def tokens(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Read damaged tokens."""
    name = mutator.choice(["tokens.npz", "tokens.npz", "tokens.npy", "text.txt", "text.json", "text.jsonl"])
    path, kind = corpus.copy(name, place), mutator.random()
    if kind < 0.1:
        mutator.place(path)
    elif name == "tokens.npz" and kind < 0.5:
        mutator.archive(corpus.copy(name, place / ".."), path)
    elif name == "text.jsonl" and kind < 0.7:
        path.write_bytes(mutator.json_lines(path.read_bytes()))
    elif name == "text.json" and kind < 0.7:
        path.write_bytes(mutator.json(path.read_bytes()))
    else:
        path.write_bytes(mutator.bytes(path.read_bytes()))
    tokenizer = corpus.copy("llama", place) if name.startswith("text") else None
    found = attempt(tb.compress.load_tokens, path, tokenizer)
    for document in found or []:
        assert document.dtype is torch.int64
        assert document.ndim == 1
        assert len(document) > 0
        assert int(document.min()) >= 0


@functools.cache
def _balanced() -> tuple[torch.optim.Optimizer, tb.Balancer, str]:
    """Return a balanced optimizer after a step, and its saved state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = tb.Recipe(name="x", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=1000), kinds=None)
    balancer = tb.Balancer(optimizer, model, recipe)
    optimizer.zero_grad()
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    return optimizer, balancer, optimizer.state_dict()["param_groups"][0][KEY]


def optimizer_state(mutator: Mutator, _corpus: Corpus, _place: Path) -> None:
    """Load an optimizer state with a damaged state of the balancer: it is refused, and changes nothing, or valid."""
    optimizer, _balancer, text = _balanced()
    optimizer.load_state_dict(_with(optimizer, text))
    before = optimizer.state_dict()["param_groups"]
    damaged = (
        mutator.json(text.encode()).decode(errors="surrogateescape") if mutator.random() < 0.9 else mutator.value()
    )
    try:
        optimizer.load_state_dict(_with(optimizer, damaged))
    except tb.TempBalanceError:
        assert optimizer.state_dict()["param_groups"] == before
        return
    BalanceState.from_json(optimizer.state_dict()["param_groups"][0][KEY])
    for group in optimizer.param_groups:
        assert KEY not in group


def _with(optimizer: torch.optim.Optimizer, text: Any) -> dict[str, Any]:
    state = optimizer.state_dict()
    state["param_groups"][0][KEY] = text
    return state


TARGETS = {analysis: 6, allocation: 5, resume_file: 3, study: 3, tokens: 4, optimizer_state: 4}
