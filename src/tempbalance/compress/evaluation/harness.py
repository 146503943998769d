"""Run tasks of lm-evaluation-harness on a live model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.errors import require_extra

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, Any]]:
    """Run tasks of lm-evaluation-harness on a Hugging Face causal language model.

    Named tasks load their data from the hub. Define a task on local files by a mapping with the keys of the harness's
    YAML (its ``docs/new_task_guide.md``): ``{"task": "mine", "dataset_path": "json", "dataset_kwargs":
    {"data_files": ...}, "output_type": "multiple_choice", ...}``.

    Args:
        model: A live model, on the device to run on; its training mode is restored.
        tokenizer: Its Hugging Face tokenizer, or the folder of the tokenizer.
        tasks: Names, such as ``"hellaswag"``, or mappings.
        limit: Number of documents of each task, for a quick test; None for all.
        batch_size: Documents per batch.

    Returns:
        The metrics of each task, with the harness's names, such as ``{"acc,none": 0.5, "acc_stderr,none": 0.02}``.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    with require_extra("eval", "tasks need lm-evaluation-harness"):
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with restored_modes(model), torch.random.fork_rng():  # the harness sets modes and seeds
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found = lm_eval.simple_evaluate(model=wrapped, tasks=[*tasks], limit=limit, log_samples=False)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    return {task: dict(metrics) for task, metrics in found["results"].items()}
