"""LoRA ranks as a configuration of PEFT."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from tempbalance._files import write_atomically
from tempbalance.compress.allocation import Allocation
from tempbalance.errors import require_extra

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["export_peft", "lora_config"]


def lora_config(allocation: Allocation, *, scaling: float = 1, **options: Any) -> LoraConfig:
    """Return an allocation of ranks as a configuration of PEFT, for ``peft.get_peft_model(model, config)``.

    Each module is addressed by a pattern that matches its full name only: ``layers.1`` does not match ``layers.10``.

    Args:
        allocation: An allocation of ranks.
        scaling: The factor ``lora_alpha / r`` on the update, the same for modules of every rank.
        **options: Other options of ``peft.LoraConfig``, such as ``lora_dropout``, except ``use_rslora``, which makes
            the factor depend on the rank.

    Returns:
        The configuration, with ``target_modules``, ``rank_pattern`` and ``alpha_pattern``.

    Raises:
        AllocationError: It allocates sparsity or bits.
        MissingExtraError: PEFT is not installed.

    Example:
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="h.1.fc", unit="h.1", shape=(64, 64), rank=5)
        >>> head = {"source": "model", "quantity": "rank", "budget": 8, "method": "by hand", "unit": "block"}
        >>> config = lora_config(Allocation(**head, layers=(layer,)), scaling=2, lora_dropout=0.1)
        >>> config.lora_alpha, list(config.rank_pattern.values()), list(config.alpha_pattern.values())
        (16, [5], [10])
    """
    allocation.check_quantity("rank")
    with require_extra("peft", "LoRA needs PEFT"):
        from peft import LoraConfig
    return LoraConfig(**_arguments(allocation, scaling), **options)


def export_peft(allocation: Allocation, path: str | os.PathLike[str], *, scaling: float = 1) -> None:
    """Write an allocation of ranks as the arguments of ``peft.LoraConfig``, as JSON.

    Apply it with ``LoraConfig(**json.load(open(path)))``, and other options such as ``lora_dropout``.

    Args:
        allocation: An allocation of ranks.
        path: The file, usually ``.json``.
        scaling: The factor ``lora_alpha / r`` on the update, the same for modules of every rank.

    Raises:
        AllocationError: It allocates sparsity or bits.
        AnalysisError: The file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from tempbalance.compress import LayerAllocation
        >>> layer = LayerAllocation(name="h.1.fc", unit="h.1", shape=(64, 64), rank=5)
        >>> head = {"source": "model", "quantity": "rank", "budget": 8, "method": "by hand", "unit": "block"}
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "lora.json"
        >>> export_peft(Allocation(**head, layers=(layer,)), path)
        >>> list(json.loads(path.read_text())["rank_pattern"].values())
        [5]
    """
    allocation.check_quantity("rank")
    write_atomically(path, json.dumps(_arguments(allocation, scaling), indent=1).encode() + b"\n")


def _arguments(allocation: Allocation, scaling: float) -> dict[str, Any]:
    ranks = {f"^{re.escape(layer.name)}": layer.rank for layer in allocation.layers}
    return {
        "r": int(allocation.budget),
        "lora_alpha": scaling * allocation.budget,
        "target_modules": "|".join(re.escape(name) for name in allocation),
        "rank_pattern": ranks,
        "alpha_pattern": {pattern: scaling * rank for pattern, rank in ranks.items()},
    }
