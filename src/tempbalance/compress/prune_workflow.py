"""The workflows of ``tempbalance allocate`` and ``prune``: analyse, allocate, prune, save and evaluate a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance._files import as_path, check_replaceable
from tempbalance.analysis.analyzer import Source, analyze, check_device
from tempbalance.analysis.result import Analysis
from tempbalance.checkpoints import open_checkpoint
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.causal_lm import load_causal_lm, transformers_bars
from tempbalance.compress.evaluation.likelihood import Perplexity, perplexity
from tempbalance.compress.evaluation.tokens import Calibration, Documents, files_of, read_documents
from tempbalance.compress.pruning.outliers import outlier_ratios
from tempbalance.compress.pruning.pruned_checkpoint import ALLOCATION_FILE, prune_checkpoint, save_pruned
from tempbalance.compress.pruning.pruner import Criterion, check_criterion, prune
from tempbalance.compress.pruning.targets import check_unquantised, find_targets, stored_names
from tempbalance.compress.pruning_result import PruningResult
from tempbalance.compress.search.simple_methods import compare_methods, measure_sparsity
from tempbalance.compress.search.sparsity_search import search_sparsity
from tempbalance.compress.sparsity import allocate_sparsity
from tempbalance.compress.sparsity_settings import SparsitySettings, fallback_for, with_method
from tempbalance.errors import AllocationError, TempBalanceError, TokensError

__all__ = ["allocate_folder", "prune_folder"]

_logger = logging.getLogger("tempbalance")


def allocate_folder(  # noqa: PLR0913  two parameters, and options by keyword
    source: str | os.PathLike[str] | Analysis,
    allocation: float | SparsitySettings | Allocation,
    method: Criterion = "magnitude",
    *,
    calibration: Calibration | None = None,
    revision: str | None = None,
    key: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Allocation:
    """Allocate sparsity over the layers of a model on disk, as ``prune_folder`` does, without pruning it.

    Args:
        source: A checkpoint: a folder (sharded or not), a file, or a hub id; or an analysis (``Analysis.load``), unless
            calibration text is used.
        allocation: The global sparsity, settings for its allocation, or an allocation, which is returned if it is for
            this model.
        method: Pruning criterion that the allocation is for.
        calibration: Calibration text, as for ``prune_folder``.
        revision: Branch, tag or commit of a hub id.
        key: Key of the state dict in a training checkpoint; by default it is searched.
        device: Device to compute on; by default the CPU.
        progress: Whether to show progress bars (on a terminal only).

    Returns:
        The allocation.

    Raises:
        AllocationError: There is nothing to prune, a parameter is out of range, or the allocation is for another model.
        SelectionError: There is no such device.
        CheckpointError: The source cannot be read.
        TokensError: Calibration is missing or cannot be read.
        MissingExtraError: A required package is not installed.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "model.pt"
        >>> torch.save({"a": torch.randn(8, 8), "b": torch.randn(8, 16)}, path)
        >>> dict(allocate_folder(path, 0.25))
        {'a': 0.25, 'b': 0.25}
    """
    settings = allocation if isinstance(allocation, Allocation) else with_method(allocation, calibration)
    check_criterion(method)
    check_device(device)
    used = _check_calibration(settings, method, calibration)
    if isinstance(source, Analysis):
        if isinstance(settings, Allocation) or used:
            raise AllocationError("calibration text, or a check of an allocation, needs the model itself")
        return _allocate_analysed(source, settings)
    with open_checkpoint(source, revision, key=key) as checkpoint:
        if isinstance(settings, Allocation):
            find_targets(checkpoint, settings, stored_names)
        if calibration is None or not used or isinstance(settings, Allocation):
            return _allocate(checkpoint, settings, method, os.fspath(source), device=device, progress=progress)
        folder = checkpoint.path
    sequences = calibration.for_model(folder).draw(folder)
    options: dict[str, Any] = {"fallback": fallback_for(allocation), "device": device, "progress": progress}
    with transformers_bars(progress):
        model = load_causal_lm(folder, device)
        return _allocate(model, settings, method, os.fspath(source), sequences, **options)


def prune_folder(  # noqa: PLR0913  four parameters, and options by keyword
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    allocation: float | SparsitySettings | Allocation,
    method: Criterion = "magnitude",
    *,
    calibration: Calibration | None = None,
    evaluate: Documents | None = None,
    length: int | None = None,
    revision: str | None = None,
    key: str | None = None,
    partial: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> PruningResult:
    """Prune a model on disk and save it as a folder.

    Magnitude pruning streams any checkpoint tensor by tensor. What uses calibration text, and N:M sparsity, loads a
    Hugging Face causal language model. The folder contains dense safetensors with zeros, the config and tokenizer
    files, and ``allocation.json``.

    Args:
        source: A checkpoint: a folder (sharded or not), a file, or a hub id.
        out: Folder to write, atomically; an earlier output there is replaced, even if it is ``source``.
        allocation: The global sparsity, settings for its allocation, or an allocation (``Allocation.load``).
        method: Pruning criterion.
        calibration: Calibration text, for Wanda, SparseGPT, and allocations that use it; with it, the best simple
            allocation on it is the default.
        evaluate: Text to measure the perplexity on, before and after: a file (see ``load_tokens``) or token ids.
        length: Tokens in a window of ``evaluate``; by default the model's context length, at most 2,048.
        revision: Branch, tag or commit of a hub id.
        key: Key of the state dict in a training checkpoint; by default it is searched.
        partial: Whether less than 90 % of the weights inside the blocks may be in the allocation.
        device: Device to compute on; by default the CPU.
        progress: Whether to show progress bars (on a terminal only).

    Returns:
        The allocation, the sparsity achieved, and the perplexities.

    Raises:
        AllocationError: There is nothing to prune, a parameter is out of range, or the allocation is for another model
            or covers too little of this one.
        SelectionError: There is no such device.
        CheckpointError: The source cannot be read, or ``out`` is not an earlier output or cannot be written.
        TokensError: Calibration is missing, or a text cannot be read.
        MissingExtraError: A required package is not installed.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"a": torch.arange(1.0, 65.0).view(8, 8)}, folder / "model.pt")
        >>> result = prune_folder(folder / "model.pt", folder / "pruned", 0.25)
        >>> result.zeros, result.weights
        (16, 64)
    """
    settings = allocation if isinstance(allocation, Allocation) else with_method(allocation, calibration)
    check_criterion(method)
    check_device(device)
    calibrated = _check_calibration(settings, method, calibration)
    check_replaceable(as_path("out", out), ALLOCATION_FILE)
    with open_checkpoint(source, revision, key=key) as checkpoint:
        folder = checkpoint.path
        if not isinstance(settings, Allocation):
            check_unquantised(checkpoint)
    if calibration is not None:
        calibration = calibration.for_model(folder)
    sequences = calibration.draw(folder) if calibration is not None and calibrated else []
    held_out = None if evaluate is None else read_documents(evaluate, folder)
    texts = files_of(calibration.tokens if calibration else None, evaluate)

    def measure(model: str | os.PathLike[str]) -> Perplexity | None:
        """Return the perplexity of a folder, if there is a text to measure it on."""
        if held_out is None:
            return None
        return perplexity(model, held_out, length=length, device=device, progress=progress)

    before = measure(folder)
    if calibrated or settings.group is not None:
        with transformers_bars(progress):
            model = load_causal_lm(folder, device)
            options: dict[str, Any] = {"fallback": fallback_for(allocation), "device": device, "progress": progress}
            used = _allocate(model, settings, method, os.fspath(source), sequences, **options)
            achieved = prune(model, used, method, calibration=sequences, partial=partial, progress=progress)
            save_pruned(model, used, out, folder, exclude=texts)
            del model
    else:
        with open_checkpoint(folder, key=key) as checkpoint:
            used = _allocate(checkpoint, settings, method, os.fspath(source), device=device, progress=progress)
            achieved = prune_checkpoint(checkpoint, used, out, partial=partial, exclude=texts, progress=progress)
    after = measure(out)
    return PruningResult(
        allocation=used,
        method=method,
        achieved=achieved,
        calibration=calibration.settings if calibration is not None and calibrated else None,
        perplexity=(before, after) if before is not None and after is not None else None,
    )


def _check_calibration(
    settings: SparsitySettings | Allocation, method: Criterion, calibration: Calibration | None
) -> bool:
    """Return whether calibration text is used; raise if it is missing, warn if it has no effect."""
    used = method != "magnitude" or (isinstance(settings, SparsitySettings) and settings.calibrated)
    if used and calibration is None:
        raise TokensError(
            "wanda, sparsegpt, owl, best, search, and atp without beta need calibration text: pass "
            "calibration=Calibration(tokens=...), or --calibration FILE on the command line"
        )
    if not used and calibration is not None:
        _logger.warning("the calibration text has no effect: neither the criterion nor the allocation uses it")
    return used


def _allocate(  # noqa: PLR0913  most are keyword options
    model: Source,
    settings: SparsitySettings | Allocation,
    criterion: Criterion,
    name: str,
    sequences: Sequence[Tensor] = (),
    *,
    fallback: SparsitySettings | None = None,
    device: torch.device | str | None,
    progress: bool,
) -> Allocation:
    if isinstance(settings, Allocation):
        return settings
    analysis = analyze(model, estimator=settings.estimator, windows=settings.windows, device=device, progress=progress)
    analysis = replace(analysis, source=name)
    if settings.measured and isinstance(model, nn.Module):
        try:
            return _allocate_measured(model, settings, criterion, sequences, analysis, progress)
        except TempBalanceError as error:
            if fallback is None or settings.method != "best":
                raise
            settings = fallback
            _logger.warning(
                "method %r is used, because allocations cannot be compared on the calibration text: %s",
                *(settings.method, error),
            )
    outliers = None
    if settings.method == "owl" and isinstance(model, nn.Module):
        outliers = outlier_ratios(model, sequences, progress=progress)
    allocation = _allocate_analysed(analysis, settings, outliers)
    if not sequences or settings.group is not None or not settings.compare or not isinstance(model, nn.Module):
        return allocation
    return compare_methods(
        model, allocation, sequences, criterion, analysis=analysis, routers=settings.routers, progress=progress
    )


def _allocate_measured(
    model: nn.Module,
    settings: SparsitySettings,
    criterion: Criterion,
    sequences: Sequence[Tensor],
    analysis: Analysis,
    progress: bool,
) -> Allocation:
    if settings.method == "search":
        return search_sparsity(
            model,
            settings.sparsity,
            sequences,
            criterion,
            settings.search,
            unit=settings.unit or "layer",
            analysis=analysis,
            routers=settings.routers,
            progress=progress,
        )
    found = measure_sparsity(
        model,
        settings.sparsity,
        sequences,
        criterion,
        unit=settings.unit,
        analysis=analysis,
        routers=settings.routers,
        progress=progress,
    )
    if settings.method == "best":
        best = next(iter(found.values()))
        for finding in best.findings:
            _logger.warning("%s: %s", finding.message, finding.next_step)
        return best
    if "atp" not in found:
        raise AllocationError("method 'atp' needs at least two blocks and a sparsity above 0: use 'uniform'")
    return found["atp"]


def _allocate_analysed(
    analysis: Analysis, settings: SparsitySettings, outliers: Mapping[str, float] | None = None
) -> Allocation:
    return allocate_sparsity(
        analysis,
        settings.sparsity,
        settings.epsilon,
        unit=settings.unit or "block",
        method=settings.method or "uniform",
        outliers=outliers,
        beta=settings.beta,
        group=settings.group,
        routers=settings.routers,
    )
