"""Analyses with given alphas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch

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
