"""Downstream tasks for a pruned model, by lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tempbalance.errors import MissingExtraError

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

    Named tasks load their data from the hub. A task of your own, on local files, is a mapping as in the harness's YAML
    (its ``docs/new_task_guide.md``): ``{"task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": ...},
    "output_type": "multiple_choice", ...}``.

    Args:
        model: A live model, where it is to run; its mode is put back.
        tokenizer: Its Hugging Face tokenizer, or the folder of one.
        tasks: Names, such as ``"hellaswag"``, or mappings.
        limit: How many documents of each task; None for all. For trying out: the standard error grows accordingly.
        batch_size: Documents at once.

    Returns:
        For each task, its metrics as the harness names them, such as ``{"acc,none": 0.5, "acc_stderr,none": 0.02}``.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise MissingExtraError("tasks need lm-evaluation-harness: pip install 'tempbalance[eval]'") from error
    with _put_back(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        found = lm_eval.simple_evaluate(model=wrapped, tasks=[*tasks], limit=limit, log_samples=False)
    return {task: dict(metrics) for task, metrics in found["results"].items()}


@contextlib.contextmanager
def _put_back(model: nn.Module) -> Generator[None]:
    """Put the mode of every module and the state of every generator back: the harness sets both."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
