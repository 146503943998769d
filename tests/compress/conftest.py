"""Analyses with given alphas, a small LLaMA with random weights and tokens for it, and a trained LLaMA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tempbalance as tb


@pytest.fixture(scope="session")
def analysis_of() -> Callable[..., tb.Analysis]:
    """``analysis_of(names, alphas, shapes, mean_squares)``; the block is the name up to its first number."""
    (row,) = tb.analyze({"w": torch.eye(4)}, progress=False).layers

    def make(
        names: Sequence[str],
        alphas: Sequence[float],
        shapes: Sequence[tuple[int, int]],
        mean_squares: Sequence[float] | None = None,
    ) -> tb.Analysis:
        rows = [
            dataclasses.replace(
                row,
                name=name,
                kind="experts" if "experts" in name else "linear",
                block=".".join(name.split(".")[:2]),
                shape=shape,
                alpha=alpha,
                mean_square=mean_square,
            )
            for name, alpha, shape, mean_square in zip(
                names, alphas, shapes, mean_squares or [1.0] * len(names), strict=True
            )
        ]
        return tb.Analysis(source="made up", settings={"estimator": "none"}, layers=rows)

    return make


@pytest.fixture
def make_llama() -> Callable[..., Any]:
    """Two blocks; attention 32 x 32, MLP 32 x 160: more columns than one block of SparseGPT."""
    transformers = pytest.importorskip("transformers")

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 160, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **changes}))

    return make


@pytest.fixture
def tokens() -> list[Tensor]:
    """Sixteen sequences of two lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(64, (24 if i % 3 else 17,), generator=generator) for i in range(16)]


@pytest.fixture
def stories(data_file: Callable[[str], Path]) -> tuple[Path, list[Tensor]]:
    """Folder of a trained LLaMA with 260 k parameters, and stories for it, at most 256 tokens each."""
    folder = data_file("weights/stories260k")
    documents = tb.compress.load_tokens(next(folder.glob("*_tokens.npz")))
    return folder, [document[:256] for document in documents]
