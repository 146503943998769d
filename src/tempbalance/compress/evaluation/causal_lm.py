"""A causal language model from a folder or the hub."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from tempbalance.errors import CheckpointError, MissingExtraError

__all__ = ["load_causal_lm"]


def load_causal_lm(source: str | os.PathLike[str], device: torch.device | str | None = None) -> nn.Module:
    """Load a Hugging Face causal language model in the dtype it is stored in.

    Args:
        source: Folder or hub id.
        device: Where to; by default the CPU.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingExtraError: Transformers is not installed.
        CheckpointError: It is not a model that Transformers can load.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError(
            "loading a language model needs Transformers: pip install 'tempbalance[transformers]'"
        ) from error
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    except Exception as error:  # a wide family, of Transformers', the hub's and built-in errors
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source}: not a causal language model that Transformers can load ({reason})") from error
    loaded: nn.Module = model.to(device).eval()
    return loaded
