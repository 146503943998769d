"""A plan in the forms that other tools read. The plan itself stays the file to keep: each form loses something."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from tempbalance._files import write_whole
from tempbalance.compress.pruning.sparsegpt import asked_of_modifier
from tempbalance.compress.pruning.targets import find_targets, write_zeros
from tempbalance.compress.sparsity import Allocation, LayerShare
from tempbalance.errors import AllocationError

__all__ = ["Modifier", "export_llmcompressor", "export_npy", "export_torch"]

Modifier = Literal["sparsegpt", "wanda"]

_MODIFIERS = {"sparsegpt": "SparseGPTModifier", "wanda": "WandaPruningModifier"}


def export_llmcompressor(allocation: Allocation, path: str | os.PathLike[str], method: Modifier = "sparsegpt") -> None:
    """Write a recipe for llm-compressor: one modifier for each weight, the only form that goes by name.

    Run it with ``oneshot(model, recipe=path, dataset=..., pipeline="sequential")``; the default pipeline would
    calibrate once for each modifier. Wanda there rounds the zeros of a row down; SparseGPT rounds in each 128 columns,
    so it is asked for a little less and ends at most one weight per 128 columns below the plan. Weights without zeros
    are left out. What is lost: the exact counts, alphas and settings. llm-compressor passes over the ``Conv1D`` layers
    of GPT-2 in silence.

    Args:
        allocation: The plan.
        path: The file, usually ``recipe.yaml``.
        method: Which of its modifiers.

    Raises:
        AllocationError: A weight is a part of a fused weight or an expert in a stack: a recipe names modules only.
        AnalysisError: The file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> share = LayerShare(name="h.0.fc.weight", unit="h.0", shape=(4, 5), numel=20, alpha=2.0, stderr=0.1, zeros=7)
        >>> plan = Allocation(source="model", sparsity=0.35, method="uniform", unit="block", layers=(share,))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "recipe.yaml"
        >>> export_llmcompressor(plan, path, method="wanda")
        >>> print(path.read_text(), end="")
        pruning_stage:
          layer0_modifiers:
            WandaPruningModifier:
              sparsity: 0.35
              targets: ["h.0.fc"]
    """
    if method not in get_args(Modifier):
        raise AllocationError(f"method must be 'sparsegpt' or 'wanda', got {method!r}")
    lines = ["pruning_stage:"]
    for place, layer in enumerate(_modules(allocation, "a recipe of llm-compressor")):
        sparsity = layer.sparsity if method == "wanda" else asked_of_modifier(layer.zeros, layer.shape)
        if layer.zeros == 0 or sparsity < 0:
            continue
        lines.append(f"  layer{place}_modifiers:")
        lines.append(f"    {_MODIFIERS[method]}:")
        lines.append(f"      sparsity: {sparsity}")
        if allocation.group is not None:
            lines.append(f'      mask_structure: "{layer.zeros * allocation.group // layer.numel}:{allocation.group}"')
        lines.append(f"      targets: {json.dumps([layer.name.removesuffix('.weight')], ensure_ascii=False)}")
    write_whole(path, ("\n".join(lines) + "\n").encode())


def export_npy(allocation: Allocation, path: str | os.PathLike[str]) -> None:
    """Write the sparsities as the AlphaPruning, FARMS and OWL scripts keep them: a float64 array in model order.

    One number per linear layer, seven a block in a LLaMA. What is lost: names and shapes, so that another model takes
    such a file without complaint, and where blocks begin; whether the order is that of the reader is up to the reader.

    Args:
        allocation: The plan; its weights are in model order.
        path: The file, usually ``.npy``.

    Raises:
        AllocationError: A weight is a part of a fused weight or an expert in a stack, which those scripts do not know.
        AnalysisError: The file cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> share = LayerShare(name="h.0.fc.weight", unit="h.0", shape=(4, 5), numel=20, alpha=2.0, stderr=0.1, zeros=7)
        >>> plan = Allocation(source="model", sparsity=0.35, method="uniform", unit="block", layers=(share,))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "ratios.npy"
        >>> export_npy(plan, path)
        >>> np.load(path)
        array([0.35])
    """
    content = io.BytesIO()
    np.save(content, np.array([layer.sparsity for layer in _modules(allocation, "an array")], dtype=np.float64))
    write_whole(path, content.getvalue())


def export_torch(allocation: Allocation, model: nn.Module) -> None:
    """Turn the zeros of a pruned model into masks of ``torch.nn.utils.prune``, so that training keeps them.

    Each weight becomes ``weight_orig`` times the buffer ``weight_mask``; ``torch.nn.utils.prune.remove`` undoes that,
    and is needed before the model is saved for ``from_pretrained``. An optimizer built before goes on with
    ``weight_orig``. What is lost: all but the zeros.

    Args:
        allocation: The plan.
        model: A live model that was pruned by it, with any method.

    Raises:
        AllocationError: The plan is for another model, or the model has fewer zeros than the plan: prune it first.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> plan = tb.allocate_sparsity(tb.analyze(model), sparsity=0.5)
        >>> _ = tb.compress.prune(model, plan)
        >>> export_torch(plan, model)
        >>> int(model[0].weight_mask.sum())  # of 4096
        2048
    """
    parameters = dict(model.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for target in find_targets(model, allocation, parameters):
        parameter = parameters[target.weight.parameter]
        mask = masks.setdefault(target.weight.parameter, torch.ones_like(parameter, dtype=torch.bool))
        found = target.weight.within(parameter) == 0
        count = int(found.sum())
        if count < target.share.zeros:
            raise AllocationError(
                f"{target.name} has {count} zeros and the plan says {target.share.zeros}: prune the model first"
            )
        write_zeros(mask, target.weight, found)
    for name, mask in masks.items():
        owner, _, attribute = name.rpartition(".")
        torch_prune.custom_from_mask(model.get_submodule(owner), attribute, mask)  # type: ignore[no-untyped-call]


def _modules(allocation: Allocation, form: str) -> Iterator[LayerShare]:
    """The layers of a plan, each of which must be the whole weight of a module."""
    for layer in allocation.layers:
        if not layer.name.endswith(".weight"):
            raise AllocationError(
                f"{layer.name} is not the whole weight of a module, and {form} knows nothing else: prune with "
                "tempbalance (fused weights can also be planned whole: Select(split=False))"
            )
        yield layer
