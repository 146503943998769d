"""Prune a live model by a plan."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.compress.pruning.calibration import is_linear, is_transposed, norms_by_block
from tempbalance.compress.pruning.masks import magnitude_scores, wanda_scores
from tempbalance.compress.pruning.targets import Target, find_targets, write_zeros
from tempbalance.compress.sparsity import Allocation
from tempbalance.errors import AllocationError, TokensError
from tempbalance.layers import wrapper_prefix

__all__ = ["Method", "prune"]

Method = Literal["magnitude", "wanda", "sparsegpt"]


def prune(
    model: nn.Module,
    allocation: Allocation,
    method: Method = "magnitude",
    *,
    calibration: Sequence[Tensor] | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Set weights of a live model to zero, in place, as many in each as the plan says.

    ``"magnitude"`` takes the smallest weights of each matrix. ``"wanda"`` (Sun et al., ICLR 2024) takes, in each row,
    those with the smallest product of magnitude and norm of the input; it goes block by block, so that each block is
    calibrated on what the pruned ones before it give. ``"sparsegpt"`` (Frantar and Alistarh, ICML 2023) also adapts
    the weights that stay; llm-compressor does it. The first two meet the plan to one weight.

    Args:
        model: Any module for ``"magnitude"``, a Hugging Face causal language model for the others.
        allocation: The plan, from an analysis of this model.
        method: Which weights go.
        calibration: Token ids, each of shape ``(length,)``, for Wanda and SparseGPT; ``draw_calibration`` draws them.
        progress: Whether to show a progress bar (only ever on a terminal).

    Returns:
        The share of zeros that each weight of the plan now has, by name.

    Raises:
        AllocationError: The plan is for another model, or the method cannot prune one of its weights.
        TokensError: Wanda or SparseGPT has no calibration tokens.
        MissingExtraError: SparseGPT needs llm-compressor, which is not installed.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> plan = tb.allocate_sparsity(tb.analyze(model), sparsity=0.5)
        >>> prune(model, plan)
        {'0.weight': 0.5, '1.weight': 0.5, '2.weight': 0.5}
    """
    if method not in get_args(Method):
        raise AllocationError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if method != "magnitude" and not calibration:
        raise TokensError(f"{method} calibrates on tokens: give some, calibration=[...]")
    root = model.get_submodule(wrapper_prefix(model).rstrip("."))
    parameters = dict(root.named_parameters())
    targets = find_targets(root, allocation, parameters)
    if method == "magnitude":
        _by_magnitude(root, targets, parameters, allocation.group, progress)
    elif method == "wanda":
        _by_wanda(root, targets, parameters, allocation.group, calibration or (), progress)
    else:
        if allocation.group is not None:
            raise AllocationError("N:M sparsity is for magnitude and Wanda here: prune with one of them")
        from tempbalance.compress.pruning.sparsegpt import sparsegpt

        sparsegpt(root, allocation, calibration or (), progress)
    return {t.name: float((t.weight.within(parameters[t.weight.parameter]) == 0).double().mean()) for t in targets}


def _by_magnitude(
    root: nn.Module, targets: Sequence[Target], parameters: Mapping[str, Tensor], group: int | None, progress: bool
) -> None:
    with progress_bar("pruning weights", len(targets), progress) as advance:
        for target in targets:
            parameter = parameters[target.weight.parameter]
            scores = magnitude_scores(target.weight.within(parameter))
            turned = is_transposed(root.get_submodule(target.weight.parameter.rpartition(".")[0]))
            mask = _turn(target.choose(_turn(scores, turned), group=group), turned)
            write_zeros(parameter, target.weight, mask)
            advance(1)


def _by_wanda(
    root: nn.Module,
    targets: Sequence[Target],
    parameters: Mapping[str, Tensor],
    group: int | None,
    calibration: Sequence[Tensor],
    progress: bool,
) -> None:
    layers: dict[str, list[str]] = {}
    for target in targets:
        layer, _, attribute = target.weight.parameter.rpartition(".")
        if target.weight.block is None or attribute != "weight" or not is_linear(root.get_submodule(layer)):
            raise AllocationError(f"Wanda prunes linear layers of blocks, not {target.name}: prune it by magnitude")
        names = layers.setdefault(target.weight.block, [])
        if layer not in names:
            names.append(layer)
    with contextlib.closing(norms_by_block(root, layers, calibration, progress)) as blocks:
        for block, norms in blocks:
            for target in (target for target in targets if target.weight.block == block):
                layer = target.weight.parameter.rpartition(".")[0]
                parameter, turned = parameters[target.weight.parameter], is_transposed(root.get_submodule(layer))
                scores = wanda_scores(_turn(target.weight.within(parameter), turned), norms[layer])
                write_zeros(parameter, target.weight, _turn(target.choose(scores, by_row=True, group=group), turned))


def _turn(matrix: Tensor, transposed: bool) -> Tensor:
    """As (outputs, inputs), or back."""
    return matrix.T if transposed else matrix
