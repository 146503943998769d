"""Load a causal language model from a folder or the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import nn

from tempbalance.analysis.analyzer import check_device
from tempbalance.checkpoints import open_checkpoint
from tempbalance.errors import CheckpointError, TempBalanceError, require_extra

__all__ = ["load_causal_lm", "restored_modes", "transformers_bars"]


def load_causal_lm(source: str | os.PathLike[str], device: torch.device | str | None = None) -> nn.Module:
    """Load a Hugging Face causal language model in the dtype it is stored in; of a hub id, in that of its config.json.

    Args:
        source: Folder or hub id.
        device: Device of the model; by default the CPU.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingExtraError: Transformers is not installed.
        SelectionError: There is no such device.
        CheckpointError: Transformers cannot load it as a causal language model, or it has no weights for the head.
    """
    check_device(device)
    with require_extra("transformers", "loading a language model needs Transformers"):
        from transformers import AutoModelForCausalLM
    if os.path.isfile(source):
        raise CheckpointError(f"{source} is a file: running a language model needs its Hugging Face folder")
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(source, dtype=_stored_dtype(source), output_loading_info=True)
    except Exception as error:  # Transformers, the hub and the reader raise many types
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: not a causal language model that Transformers can load ({reason})") from error
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{source}: not a causal language model: its weights have no {missing[0]}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    loaded: nn.Module = model.to(device).eval()
    return loaded


def _stored_dtype(source: str | os.PathLike[str]) -> torch.dtype | Literal["auto"]:
    """Return the one dtype of the weights in a folder, which config.json may not say; "auto" leaves it to that."""
    if not os.path.isdir(source):
        return "auto"
    try:
        with open_checkpoint(source) as checkpoint:
            dtypes = {info.dtype for info in checkpoint.tensors.values() if info.dtype is not None}
    except TempBalanceError:  # Transformers says what is wrong with it, or can read it
        return "auto"
    found = {dtype for dtype in dtypes if dtype.is_floating_point}
    return found.pop() if len(found) == 1 and found < {torch.float32, torch.float16, torch.bfloat16} else "auto"


@contextlib.contextmanager
def transformers_bars(progress: bool) -> Generator[None]:
    """Hide the progress bars of Transformers, which are shown even without a terminal, unless ours are shown."""
    if (progress and sys.stderr.isatty()) or importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextlib.contextmanager
def restored_modes(model: nn.Module) -> Generator[None]:
    """Restore the training mode of every module at the end of a ``with`` block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
