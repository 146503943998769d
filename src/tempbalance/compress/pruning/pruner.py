"""Prune a live model by an allocation."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.compress.allocation import Allocation
from tempbalance.compress.evaluation.tokens import Documents, read_documents
from tempbalance.compress.pruning.calibration import is_linear, norms_by_block
from tempbalance.compress.pruning.masks import magnitude_scores, wanda_scores
from tempbalance.compress.pruning.sparsegpt import sparsegpt
from tempbalance.compress.pruning.targets import Target, find_targets
from tempbalance.errors import AllocationError, NonFiniteError, TokensError, check_type
from tempbalance.layers import parameter_names, plain_modules, unwrapped

__all__ = ["Criterion", "check_criterion", "linear_layers", "prune", "warn_of_other_criterion"]

_logger = logging.getLogger("tempbalance")

Criterion = Literal["magnitude", "wanda", "sparsegpt"]


def prune(
    model: nn.Module,
    allocation: Allocation,
    method: Criterion = "magnitude",
    *,
    calibration: Documents | None = None,
    partial: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Set weights of a live model to zero, in place, as many per layer as allocated.

    ``"magnitude"`` prunes the smallest weights of each matrix. ``"wanda"`` (Sun et al., ICLR 2024) prunes, in each row,
    the weights with the smallest product of magnitude and input norm; blocks are pruned in order, and each is
    calibrated on the outputs of the pruned blocks before it. ``"sparsegpt"`` (Frantar and Alistarh, ICML 2023), run by
    llm-compressor, also updates the remaining weights. The number of zeros is exact to one weight.

    Args:
        model: Any module for ``"magnitude"``, a Hugging Face causal language model for the others.
        allocation: An allocation of sparsity, from an analysis of this model.
        method: Pruning criterion.
        calibration: Token ids for Wanda and SparseGPT, each sequence of shape ``(length,)`` or ``(1, length)``, as
            tensors, lists or the output of a tokenizer; see ``draw_calibration``.
        partial: Whether less than 90 % of the weights inside the blocks may be in the allocation.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        The fraction of zeros of each weight of the allocation, by name.

    Raises:
        AllocationError: The allocation is for another model or covers too little of this one, or the criterion cannot
            prune one of its weights; the model is then unchanged.
        NonFiniteError: A weight is NaN (with calibration, also infinite) or an activation is not finite; the model is
            then unchanged. Only if pruning itself makes an activation infinite (float16), or is interrupted, the blocks
            before are pruned: load the model again. Restoring them would need the memory of the weights once more.
        TokensError: Wanda or SparseGPT has no calibration tokens.
        MissingExtraError: llm-compressor is not installed, and SparseGPT needs it.

    Example:
        >>> import tempbalance as tb, torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        >>> allocation = tb.allocate_sparsity(tb.analyze(model), sparsity=0.5)
        >>> prune(model, allocation)
        {'0.weight': 0.5, '1.weight': 0.5, '2.weight': 0.5}
    """
    check_type("model", model, nn.Module)
    check_type("allocation", allocation, Allocation)
    check_criterion(method)
    if method != "magnitude" and calibration is None:
        raise TokensError(f"{method} needs calibration tokens: pass calibration=[...]")
    sequences = [] if method == "magnitude" or calibration is None else read_documents(calibration)
    if not partial:
        allocation.check_coverage()
    warn_of_other_criterion(allocation, method)
    root = unwrapped(model)
    parameters, modules = parameter_names(root), plain_modules(root)
    targets = find_targets(root, allocation, lambda weight: weight.parameter in parameters)
    for target in targets:
        values = target.weight.within(parameters[target.weight.parameter])
        if bool((values.isnan() if method == "magnitude" else ~values.isfinite()).any()):
            raise NonFiniteError(f"{target.name}: a weight is {'NaN' if method == 'magnitude' else 'not finite'}")

    def set_zeros(target: Target, score: Callable[[Tensor], Tensor], by_row: bool = False) -> None:
        """Set the weights with the smallest scores to zero, in the layout of ``nn.Linear``."""
        target.prune(parameters[target.weight.parameter], score, by_row=by_row, group=allocation.group)

    if method == "magnitude":
        with progress_bar("pruning weights", len(targets), progress) as advance:
            for target in targets:
                set_zeros(target, magnitude_scores)
                advance(1)
    elif method == "wanda":
        by_block = linear_layers(modules, targets)
        layers = {block: [target.module for target in found] for block, found in by_block.items()}
        with contextlib.closing(norms_by_block(root, layers, sequences, progress)) as blocks:
            for block, norms in blocks:
                for target in by_block[block]:
                    set_zeros(target, functools.partial(wanda_scores, norms=norms[target.module]), by_row=True)
    else:
        if allocation.group is not None:
            raise AllocationError("SparseGPT does not support N:M sparsity here: use magnitude or Wanda")
        sparsegpt(root, targets, sequences, progress)
    return {target.name: target.achieved(parameters[target.weight.parameter]) for target in targets}


def check_criterion(method: str) -> None:
    """Raise an AllocationError if there is no such pruning criterion."""
    if method not in get_args(Criterion):
        raise AllocationError(f"method must be one of {', '.join(get_args(Criterion))}, got {method!r}")


def warn_of_other_criterion(allocation: Allocation, method: Criterion) -> None:
    """Warn if an allocation was measured for another criterion; those for SparseGPT have the scores of Wanda."""
    found = allocation.criterion
    if found and (found == "magnitude") != (method == "magnitude"):
        _logger.warning("the allocation was measured for %s: prune by %s, or allocate for %s", found, found, method)


def linear_layers(modules: Mapping[str, nn.Module], targets: Sequence[Target]) -> dict[str, list[Target]]:
    """Return the targets by block, if each is a linear layer inside a block or a part of one."""
    by_block: dict[str, list[Target]] = {}
    for target in targets:
        block, attribute = target.weight.block, target.weight.parameter.rpartition(".")[2]
        if block is None or attribute != "weight" or not is_linear(modules[target.module]):
            raise AllocationError(f"Wanda prunes linear layers inside blocks, not {target.name}: prune it by magnitude")
        by_block.setdefault(block, []).append(target)
    return by_block
