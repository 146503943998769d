"""Inputs of the linear layers of a causal language model over calibration tokens, block by block."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.compress.evaluation.tokens import batches
from tempbalance.errors import AllocationError, NonFiniteError, TokensError
from tempbalance.layers import plain_modules

__all__ = ["input_norms", "is_linear", "is_transposed", "norms_by_block", "through_blocks"]


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer stores its weight as ``(inputs, outputs)``: ``Conv1D`` of Transformers (GPT-2)."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, ``nn.Linear`` or ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def input_norms(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, Tensor]:
    """Compute the norm of every input feature of linear layers in float32, over all tokens that ``run`` passes."""
    squares: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Return a hook that adds the inputs of one layer."""

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            """Add the squares of a batch."""
            found = inputs[0].detach().flatten(0, -2).float().square().sum(dim=0)
            squares[name] = squares[name] + found if name in squares else found

        return add

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for name in modules:
        if name not in squares:
            raise TokensError(f"no calibration token reached {name}: use more, or exclude it from the allocation")
        if not bool(squares[name].isfinite().all()):
            raise NonFiniteError(f"{name}: an activation is not finite on the calibration tokens")
    return {name: found.sqrt() for name, found in squares.items()}


_Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block for one batch, except the hidden states


def through_blocks(
    model: nn.Module, wanted: Collection[str], sequences: Sequence[Tensor], progress: bool = True
) -> Generator[tuple[str, Callable[[], object]]]:
    """Run a language model block by block: each block gets the outputs of the changed blocks before it."""
    # Yields the name of each wanted block, and a function that passes all tokens through it. Use contextlib.closing if
    # the loop can end early: closing the generator restores the model's training mode.
    if not sequences:
        raise TokensError("the calibration set is empty: pass token sequences")
    stack = _stack(model, wanted)
    with (
        restored_modes(model),
        torch.no_grad(),
        progress_bar("pruning blocks", len(stack), progress) as advance,
    ):
        model.eval()
        hidden, calls = _capture(model, stack, sequences)
        for name, block in stack.items():
            run = functools.partial(_run, block, hidden, calls[name])
            if name in wanted:
                yield name, run
            hidden = run()
            advance(1)


def norms_by_block(
    model: nn.Module, layers: Mapping[str, Sequence[str]], sequences: Sequence[Tensor], progress: bool = True
) -> Generator[tuple[str, dict[str, Tensor]]]:
    """Yield the name of each block and the input norms of its ``layers`` (see ``through_blocks``)."""
    modules = plain_modules(model)
    with contextlib.closing(through_blocks(model, layers, sequences, progress)) as blocks:
        for name, run in blocks:
            yield name, input_norms({layer: modules[layer] for layer in layers[name]}, run)


def _stack(model: nn.Module, layers: Collection[str]) -> dict[str, nn.Module]:
    """Return the blocks of the stack that contains the named ones, in order, up to the last named one."""
    parents = {name.rpartition(".")[0] for name in layers}
    if len(parents) != 1:
        raise AllocationError(f"calibration runs through one stack of blocks, but there are {len(parents)}")
    (parent,) = parents
    blocks = {f"{parent}.{child}": block for child, block in plain_modules(model)[parent].named_children()}
    last = max(list(blocks).index(name) for name in layers)
    return dict(list(blocks.items())[: last + 1])


def _capture(
    model: nn.Module, blocks: Mapping[str, nn.Module], sequences: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, list[_Call]]]:
    """Return the inputs of the first block and the other arguments of every block, for each batch."""
    # Other arguments differ between blocks (local and global attention), but for one block depend on the length only.
    hidden: list[Tensor] = []
    calls: dict[str, list[_Call]] = {name: [] for name in blocks}
    known: dict[tuple[int, ...], int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """Return a hook that keeps the arguments of one block."""

        def keep(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            """Keep the inputs of the first block, and the other arguments of every block."""
            if not args:
                raise AllocationError(f"{name} does not take hidden states as its first argument: cannot calibrate it")
            if name == next(iter(blocks)):
                hidden.append(args[0])
            shape = tuple(args[0].shape)
            number = known.setdefault(shape, len(hidden) - 1)
            same = calls[name][number] if number < len(calls[name]) else (args[1:], options)
            calls[name].append(same)

        return keep

    handles = [block.register_forward_pre_hook(watch(name), with_kwargs=True) for name, block in blocks.items()]
    device = next(model.parameters()).device
    try:
        for batch in batches([sequence.long() for sequence in sequences]):
            model(input_ids=batch.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, calls


def _run(block: nn.Module, hidden: Sequence[Tensor], calls: Sequence[_Call]) -> list[Tensor]:
    """Return the hidden states after a block, for every batch."""
    results = [block(states, *rest, **options) for states, (rest, options) in zip(hidden, calls, strict=True)]
    return [result[0] if isinstance(result, tuple) else result for result in results]
