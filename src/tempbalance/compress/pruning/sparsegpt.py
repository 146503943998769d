"""SparseGPT, by llm-compressor: weights go, and those that stay are adapted."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from tempbalance.compress.pruning.calibration import input_norms, through_blocks
from tempbalance.compress.pruning.masks import mask_smallest, wanda_scores
from tempbalance.errors import AllocationError, MissingExtraError
from tempbalance.layers import Select, find_weights

__all__ = ["asked_of_modifier", "sparsegpt"]

_COLUMNS = 128  # that are pruned at once, before the columns to their right are adapted: SparseGPT, section 3.4
_LOG_OFF = "LLM_COMPRESSOR_LOG_DISABLED"


def sparsegpt(
    model: nn.Module, sparsities: Mapping[str, float], tokens: Sequence[Tensor], progress: bool = True
) -> None:
    """Prune linear layers of a causal language model in place, and adapt the weights that stay.

    SparseGPT (Frantar and Alistarh, ICML 2023) goes over the columns of a matrix in blocks of 128. Each loses the
    weights that matter least to the output, by the inputs that the calibration tokens give; the columns to its right
    make up for what is lost (dampening 0.01). Each transformer block is calibrated on what the pruned ones before it
    give. llm-compressor does the pruning, with one ``SparseGPTModifier`` for each matrix: a list of sparsities it would
    apply in model order, whatever the names.

    Each matrix gets ``round(sparsity * entries)`` zeros, exactly; more only where it had more before. llm-compressor
    zeroes up to one weight too many in each block of columns, and all weights of an input that no token uses. Here
    it is asked for that many less, the last few go by their Wanda score, and what is too many is put back.

    Args:
        model: A Hugging Face causal language model; its mode, configuration and hooks are left as they were.
        sparsities: Share of zeros, in [0, 1], by the name of the weight; weights that are not named stay as they are.
        tokens: The calibration set: token ids, each of shape ``(length,)``, int64. The paper has 128 times 2048.
        progress: Whether to show a progress bar (only ever on a terminal).

    Raises:
        AllocationError: A weight is not a whole linear layer of a block, or a sparsity is out of range. Parts of fused
            weights, experts in a stack and ``Conv1D`` (GPT-2) are not; prune those by magnitude or Wanda.
        TokensError: There is no token, or none has reached a layer, as can happen to an expert.
        NonFiniteError: An activation is not finite.
        MissingExtraError: llm-compressor is not installed.

    Example:
        >>> import torch, transformers
        >>> sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        >>> config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)
        >>> model = transformers.LlamaForCausalLM(config)
        >>> tokens = [torch.randint(64, (16,), generator=torch.Generator().manual_seed(i)) for i in range(4)]
        >>> sparsegpt(model, {"model.layers.1.mlp.up_proj.weight": 0.7}, tokens)
        >>> int((model.model.layers[1].mlp.up_proj.weight == 0).sum())  # of 2048
        1434
    """
    zeros = _zeros_by_block(model, sparsities)
    if not zeros:
        return
    with _llmcompressor(), contextlib.closing(through_blocks(model, zeros, tokens, progress)) as blocks:
        for block, run in blocks:
            _prune_block(model, zeros[block], run)


def _zeros_by_block(model: nn.Module, sparsities: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """How many zeros each linear layer is to have, by the name of its block and its own."""
    weights, _ = find_weights(model, Select(split=False))
    blocks = {weight.name: weight.block for weight in weights}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    zeros: dict[str, dict[str, int]] = {}
    for name, sparsity in sparsities.items():
        if not 0 <= sparsity <= 1:
            raise AllocationError(f"{name}: a sparsity is in [0, 1], got {sparsity}")
        block = blocks.get(name)
        if block is None or name not in linear:
            raise AllocationError(
                f"SparseGPT prunes whole nn.Linear layers of blocks, and {name!r} is none here (a part of a fused "
                "weight, an expert in a stack and a Conv1D are not): prune it by magnitude or Wanda"
            )
        zeros.setdefault(block, {})[name.removesuffix(".weight")] = round(sparsity * model.get_parameter(name).numel())
    return zeros


def asked_of_modifier(zeros: int, shape: Sequence[int]) -> float:
    """What to ask llm-compressor's ``SparseGPTModifier`` for, so that it makes no more zeros than wanted.

    It makes up to one too many in each block of columns, and fails at a sparsity of 1.

    Args:
        zeros: How many are wanted.
        shape: Of the matrix, (outputs, inputs).

    Returns:
        A sparsity below 1; below 0 if even that of 0 gives too many.

    Example:
        >>> asked_of_modifier(50, (10, 10))
        0.49
    """
    return (zeros - math.ceil(shape[1] / _COLUMNS)) / math.prod(shape)


def _prune_block(model: nn.Module, zeros: Mapping[str, int], run: Callable[[], object]) -> None:
    """Prune linear layers that ``run`` lets the tokens pass through."""
    from llmcompressor.core import CompressionSession, EventType
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    modules = {layer: model.get_submodule(layer) for layer in zeros}
    weights = {layer: model.get_parameter(f"{layer}.weight") for layer in zeros}
    before = {layer: weight.detach().clone() for layer, weight in weights.items()}
    modifiers = []
    for layer, weight in weights.items():
        sparsity = asked_of_modifier(zeros[layer], weight.shape)
        if sparsity >= 0:  # else rounding up is more than all
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
    """Make the number of zeros exact: zeroed weights count first, but those of unused inputs after all other zeros."""
    norms = norms.to(weight.device)
    mask = mask_smallest(torch.where(weight == 0, -norms, wanda_scores(weight, norms)), zeros)
    weight.copy_(torch.where(weight == 0, before, weight).masked_fill(mask, 0))


@contextlib.contextmanager
def _llmcompressor() -> Generator[None]:
    # Imported as it is, it takes loguru's handlers away from the program and prints to standard output; what stays on
    # is its warning that a matrix could not be inverted.
    chosen = os.environ.get(_LOG_OFF)
    os.environ[_LOG_OFF] = "true"
    try:
        import llmcompressor
    except ImportError as error:
        raise MissingExtraError("SparseGPT needs llm-compressor: pip install 'tempbalance[prune]'") from error
    finally:
        os.environ.pop(_LOG_OFF)
        if chosen is not None:
            os.environ[_LOG_OFF] = chosen
    logger = llmcompressor.logger
    try:
        logger.level("METRIC")
    except ValueError:  # it looks its own level up before it sees that it is off
        logger.level("METRIC", no=38)
    logger.disable("llmcompressor")
    logger.enable("llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify")
    try:
        yield
    finally:
        logger.enable("llmcompressor")
