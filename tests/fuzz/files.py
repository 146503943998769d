"""Damaged checkpoints: a typed error, rows with a reason, or the numbers of what another reader finds in the file."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import tempbalance as tb
from fuzz.corpus import Corpus, tiny_state
from fuzz.mutate import TEXTS, Mutator
from tempbalance.types import Status


def check_analysis(analysis: tb.Analysis) -> None:
    """Check what holds for every analysis."""
    for layer in analysis.layers:
        assert math.isfinite(layer.alpha) == (layer.status is Status.OK), layer
        assert len(layer.shape) >= 2, layer
    for row in analysis.skipped:
        assert row.reason, row


def _analyzed(path: Path) -> tb.Analysis | None:
    try:
        analysis = tb.analyze(path, progress=False)
    except tb.TempBalanceError:
        return None
    check_analysis(analysis)
    return analysis


def _check_against(path: Path, read: Any) -> None:
    """Compare the rows of a file with those of the tensors that another reader finds in it."""
    analysis = _analyzed(path)
    if analysis is None:
        return
    try:
        tensors = read(path)
        assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    except Exception:
        return
    expected = {row.name: row for row in tb.analyze(tensors, progress=False).layers}
    for row in analysis.layers:
        if row.name in expected:
            assert expected[row.name].shape == row.shape
            assert expected[row.name].alpha == row.alpha or row.status is not Status.OK


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def safetensors_file(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse a damaged ``.safetensors`` file."""
    path = corpus.copy("model.safetensors", place)
    path.write_bytes(mutator.safetensors(path.read_bytes()))
    _check_against(path, load_file)


def quantised_file(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse a damaged file with weights in several quantised formats, or a damaged GGUF file."""
    path = corpus.copy(mutator.choice(["quantised.safetensors", "model.gguf"]), place)
    content = path.read_bytes()
    path.write_bytes((mutator.bytes if path.suffix == ".gguf" else mutator.safetensors)(content))
    _analyzed(path)


def torch_file(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse a damaged ``.pt`` file."""
    path = corpus.copy(mutator.choice(["model.pt", "model.pt", "legacy.pt"]), place)
    if path.name == "model.pt" and mutator.random() < 0.5:
        mutator.archive(corpus.copy("model.pt", place / ".."), path)
    else:
        path.write_bytes(mutator.bytes(path.read_bytes()))
    _check_against(path, _load)


def _odd_tensor(mutator: Mutator) -> Any:
    """Return a tensor that is hard to analyse, or something that is no tensor."""
    base = torch.randn(8, 6, generator=torch.Generator().manual_seed(mutator.randrange(9)))
    makers = [
        *(lambda: base * math.nan, base.to_sparse, lambda: base.to(torch.float8_e4m3fn), base.int),
        *(
            lambda: base.half() * 1e5,
            lambda: base * 1e-42,
            lambda: base.double() * 1e300,
            lambda: base * 0,
            lambda: base[:0],
        ),
        *(lambda: base[0, 0], lambda: base[:, :1], lambda: base[0].expand(5, 6), lambda: base.T, base.bool),
        *(
            lambda: base.to(torch.complex64),
            lambda: torch.nested.nested_tensor([base, base[:2]]),
            lambda: base.to("meta"),
        ),
        *(
            lambda: torch.quantize_per_tensor(base, 0.1, 0, torch.qint8),
            base.to_sparse_csr,
            lambda: base[None, None],
        ),
        *(
            lambda: torch.nn.Parameter(base),
            lambda: base.view(2, 2, 2, 6),
            base.bfloat16,
            lambda: {"inner": base},
        ),
        *(lambda: [base], lambda: mutator.choice(TEXTS), lambda: 10**400, lambda: base.expand(10**6, 8, 6)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mutator.choice(makers)()


def odd_content(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse a valid file of odd names, tensors and containers, also as a state dict in memory."""
    state: dict[Any, Any] = dict(tiny_state())
    for _ in range(mutator.choice([1, 2, 4])):
        name = mutator.choice([*TEXTS, "layers.1.fc.weight", "layers.2.fc.weight", "head.weight", 3, None, 1.5, (1, 2)])
        state[name] = _odd_tensor(mutator)
    if mutator.random() < 0.2:
        state["cycle"] = state
    for _ in range(mutator.choice([0, 0, 0, 1, 3, 500])):
        state = {mutator.choice(["state_dict", "model", "x", 0]): state}
    with contextlib.suppress(tb.TempBalanceError):
        check_analysis(tb.analyze(state, progress=False))
    path = place / "odd.pt"
    try:
        torch.save(state, path)
    except Exception:
        return  # torch cannot save it
    _analyzed(path)


def model_folder(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse a folder of which one file is damaged, missing or something else."""
    name = mutator.choice(["llama", "llama", "adapter"])
    folder = corpus.copy(name, place)
    file = mutator.choice(sorted(each for each in folder.iterdir() if not each.name.startswith("token")))
    if mutator.random() < 0.15:
        mutator.place(file)
    elif file.suffix == ".json":
        file.write_bytes(mutator.json(file.read_bytes()))
    else:
        file.write_bytes(mutator.safetensors(file.read_bytes()))
    _analyzed(folder)


def other_file(mutator: Mutator, corpus: Corpus, place: Path) -> None:
    """Analyse what is no checkpoint."""
    path = place / mutator.choice(["a.pt", "a.safetensors", "a.bin", "a", "a.json", "a.gguf"])
    mutator.place(path)
    _analyzed(path)


TARGETS = {
    safetensors_file: 4,
    torch_file: 4,
    quantised_file: 3,
    odd_content: 3,
    model_folder: 5,
    other_file: 1,
}
