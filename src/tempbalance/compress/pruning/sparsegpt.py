"""SparseGPT, run by llm-compressor: prune weights, and update the remaining ones."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from tempbalance.compress.pruning.calibration import input_norms, through_blocks
from tempbalance.compress.pruning.masks import mask_smallest, wanda_scores
from tempbalance.compress.pruning.targets import Target, check_unwrapped
from tempbalance.errors import AllocationError, require_extra
from tempbalance.layers import plain_modules

__all__ = ["sparsegpt", "sparsity_for_modifier"]

_COLUMNS = 128  # pruned together, before the columns to the right are updated: SparseGPT, section 3.4
_LOG_OFF = "LLM_COMPRESSOR_LOG_DISABLED"


def sparsegpt(model: nn.Module, targets: Sequence[Target], tokens: Sequence[Tensor], progress: bool = True) -> None:
    """Prune whole linear layers of a causal language model in place, and update the remaining weights.

    SparseGPT (Frantar and Alistarh, ICML 2023) prunes a matrix in blocks of 128 columns. In each block the weights that
    change the outputs on the calibration tokens least are set to zero, and the columns to the right are updated to
    compensate (dampening 0.01). llm-compressor runs it, with one ``SparseGPTModifier`` per matrix, because it applies a
    list of sparsities in model order, not by name.

    Each matrix gets exactly its number of zeros, or more if it had more before. llm-compressor sets up to one weight
    too many to zero in each block of columns, and all weights of an input that no token uses. Therefore its
    sparsity is set slightly lower; then the missing zeros are chosen by Wanda score, and surplus zeros are undone.

    Raises:
        AllocationError: A target is not a whole ``nn.Linear`` inside a block.
    """
    zeros: dict[str, dict[str, int]] = {}
    modules = plain_modules(model)
    for target in targets:
        block, attribute = target.weight.block, target.name.rpartition(".")[2]
        if block is None or attribute != "weight" or not isinstance(modules[target.module], nn.Linear):
            raise AllocationError(
                f"SparseGPT prunes whole nn.Linear layers inside blocks, not {target.name!r} (a part of a fused "
                "weight, an expert in a stack, a Conv1D, or not in this model): prune it by magnitude or Wanda"
            )
        zeros.setdefault(block, {})[target.module] = target.layer.zeros
    if not zeros:
        return
    check_unwrapped(model, [target.module for target in targets])
    with _llmcompressor(), contextlib.closing(through_blocks(model, zeros, tokens, progress)) as blocks:
        for name, run in blocks:
            _prune_block(model, zeros[name], run)


def sparsity_for_modifier(zeros: int, shape: Sequence[int]) -> float:
    """Return a sparsity at which ``SparseGPTModifier`` makes at most a given number of zeros; negative if none does."""
    # It makes up to one zero too many in each block of columns, and fails at a sparsity of 1.
    return (zeros - math.ceil(shape[1] / _COLUMNS)) / math.prod(shape)


def _prune_block(model: nn.Module, zeros: Mapping[str, int], run: Callable[[], object]) -> None:
    """Prune the linear layers of one block; ``run`` passes the tokens through it."""
    from llmcompressor.core import CompressionSession, EventType
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    modules = {layer: model.get_submodule(layer) for layer in zeros}
    weights = {layer: model.get_parameter(f"{layer}.weight") for layer in zeros}
    before = {layer: weight.detach().clone() for layer, weight in weights.items()}
    modifiers = []
    for layer, weight in weights.items():
        sparsity = sparsity_for_modifier(zeros[layer], weight.shape)
        if sparsity >= 0:
            modifiers.append(SparseGPTModifier(sparsity=sparsity, targets=[layer], block_size=_COLUMNS))
    session = CompressionSession()
    session.initialize(model=model, recipe=modifiers, sequential_targets=[])
    try:
        session.event(EventType.CALIBRATION_START)
        norms = input_norms(modules, run)
        session.event(EventType.SEQUENTIAL_EPOCH_END)
    finally:
        for modifier in modifiers:
            modifier.remove_hooks()
    for layer, weight in weights.items():
        _settle(weight, before[layer], norms[layer], zeros[layer])


def _settle(weight: Tensor, before: Tensor, norms: Tensor, zeros: int) -> None:
    """Make the number of zeros exact: keep zeros first, those of unused inputs last, then prune by Wanda score."""
    norms = norms.to(weight.device)
    mask = mask_smallest(torch.where(weight == 0, -norms, wanda_scores(weight, norms)), zeros)
    weight.copy_(torch.where(weight == 0, before, weight).masked_fill(mask, 0))


@contextlib.contextmanager
def _llmcompressor() -> Generator[None]:
    # Its import removes loguru's handlers and prints to standard output. Its warning that a matrix could not be
    # inverted stays enabled.
    chosen = os.environ.get(_LOG_OFF)
    os.environ[_LOG_OFF] = "true"
    try:
        with require_extra("prune", "SparseGPT needs llm-compressor"):
            import llmcompressor
    finally:
        os.environ.pop(_LOG_OFF)
        if chosen is not None:
            os.environ[_LOG_OFF] = chosen
    logger = llmcompressor.logger
    try:
        logger.level("METRIC")
    except ValueError:  # it looks up its own level before it checks whether logging is disabled
        logger.level("METRIC", no=38)
    logger.disable("llmcompressor")
    logger.enable("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    try:
        yield
    finally:
        logger.enable("llmcompressor")
