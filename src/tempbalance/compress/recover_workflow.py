"""The workflow of ``tempbalance recover``: fine-tune a pruned model on disk, save and evaluate it."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from tempbalance._files import as_path, check_replaceable
from tempbalance.analysis.analyzer import check_device
from tempbalance.balance import Recipe
from tempbalance.compress.evaluation.causal_lm import load_causal_lm, transformers_bars
from tempbalance.compress.evaluation.likelihood import perplexity
from tempbalance.compress.evaluation.tokens import Documents, files_of, read_documents
from tempbalance.compress.recovery.lora_recovery import (
    RECOVERY_FILE,
    RecoveryResult,
    RecoverySettings,
    recover,
    save_recovered,
)

__all__ = ["recover_folder"]


def recover_folder(  # noqa: PLR0913  four parameters, and options by keyword
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokens: Documents,
    settings: RecoverySettings | None = None,
    *,
    recipe: Recipe | None = None,
    evaluate: Documents | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> RecoveryResult:
    """Fine-tune a pruned causal language model on disk by LoRA that keeps every zero, and save it as a folder.

    The folder contains dense safetensors with the same zeros, the config and tokenizer files, and ``recovery.json``.

    Args:
        source: Folder of the pruned model.
        out: Folder to write, atomically; an earlier recovery there is replaced.
        tokens: Text to train on: a file (see ``load_tokens``) or token ids.
        settings: Training settings, by default ``RecoverySettings()``.
        recipe: Recipe for balancing, such as ``tempbalance.recipes.model_balancing()``; None for one learning rate.
        evaluate: Text to measure the perplexity on, before and after, in windows of ``settings.length`` tokens.
        device: Device to train on; by default the CPU.
        progress: Whether to show progress bars (on a terminal only).

    Returns:
        The settings, sparsities, losses and perplexities.

    Raises:
        AllocationError: No linear layer inside the blocks has 1 % zeros: the model is not pruned.
        SelectionError: There is no such device.
        CheckpointError: The source cannot be read, or ``out`` is not an earlier recovery or cannot be written.
        TokensError: A text cannot be read, or there are too few tokens.
        NonFiniteError: The loss or a gradient is not finite.
        MissingExtraError: Transformers or PEFT is not installed.
    """
    settings = settings or RecoverySettings()
    check_device(device)
    check_replaceable(as_path("out", out), RECOVERY_FILE)
    documents = read_documents(tokens, source)
    held_out = None if evaluate is None else read_documents(evaluate, source)
    with transformers_bars(progress):
        model = load_causal_lm(source, device)
        if held_out is not None:
            before = perplexity(model, held_out, length=settings.length, progress=progress)
        result = recover(model, documents, settings, recipe=recipe, progress=progress)
        save_recovered(model, result, out, source, exclude=files_of(tokens, evaluate))
        if held_out is not None:
            after = perplexity(model, held_out, length=settings.length, progress=progress)
            result = replace(result, perplexity=(before, after))
    return result
