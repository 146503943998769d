"""The tools that are compared. Each analyses all linear layers and convolutions of a model in memory."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

import tempbalance as tb


def tempbalance(model: nn.Module, analysis: str, dtype: str | None = None) -> Callable[[], object]:
    """``analyze`` with its defaults; with KS including the embeddings, as WeightWatcher does."""
    estimator = tb.KS() if analysis == "KS" else tb.Hill()
    windows = tb.FARMS() if analysis == "FARMS" else None
    select = tb.Select(embeddings=analysis == "KS")
    options = {"estimator": estimator, "windows": windows, "select": select, "dtype": dtype, "progress": False}
    return lambda: tb.analyze(model, **options)


def weightwatcher(model: nn.Module) -> Callable[[], object]:
    """WeightWatcher with its defaults: ``KS``, embeddings included."""
    import weightwatcher as ww

    logging.disable(logging.ERROR)
    return lambda: ww.WeightWatcher(model=model).analyze()


def released_tempbalance(model: nn.Module, folder: Path) -> Callable[[], object]:
    """The code released with TempBalance, with its defaults: float32 SVDs, ``Hill``."""
    spec = importlib.util.spec_from_file_location("released_tempbalance", folder / "TempBalance" / "tempbalance.py")
    assert spec is not None  # the file has the name of our package
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda: module.Tempbalance(model).net_esd_estimator()


def released_farms(model: nn.Module, folder: Path, rows: int) -> Callable[[], object]:
    """The code released with FARMS for language models: SVDs of 10 x 10 windows of ``rows`` rows, ``Hill``."""
    sys.path.insert(0, str(folder / "FARMS" / "LLM_Pruning"))
    estimator = importlib.import_module("lib.esd_utils_farms").net_esd_estimator_farms
    return lambda: estimator(model, num_row_samples=rows, Q_ratio=1.0, sampling_ops_per_dim=10)


def bare(model: nn.Module) -> Callable[[], object]:
    """The minimal work: the Gram matrix of the smaller side and its eigenvalues in float64, one after the other."""
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]

    def compute() -> None:
        for weight in weights:
            matrix = weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight
            matrix = (matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT).double()
            torch.linalg.eigvalsh(matrix.mT @ matrix).cpu()

    return compute


@contextlib.contextmanager
def quiet_and_here(device: str) -> Iterator[None]:
    """Silence all output; on a CPU, make ``.cuda()``, which the released code calls, a no-op."""
    cuda = torch.Tensor.cuda
    if device == "cpu":
        torch.Tensor.cuda = lambda self, *_, **__: self
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            yield
    finally:
        torch.Tensor.cuda = cuda
