"""Inputs of the linear layers of a causal language model over calibration tokens, block by block."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tempbalance._progress import progress_bar
from tempbalance.compress.evaluation.causal_lm import restored_modes
from tempbalance.compress.evaluation.likelihood import check_vocabulary
from tempbalance.compress.evaluation.tokens import batches
from tempbalance.errors import AllocationError, NonFiniteError, TokensError
from tempbalance.layers import plain_modules

__all__ = ["input_norms", "is_linear", "is_transposed", "norms_by_block", "through_blocks"]


_logger = logging.getLogger("tempbalance")


def is_transposed(module: nn.Module) -> bool:
    """Return whether a linear layer stores its weight as ``(inputs, outputs)``: ``Conv1D`` of Transformers (GPT-2)."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, ``nn.Linear`` or ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def input_norms(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, Tensor]:
    """Compute the norm of every input feature of linear layers in float32, over all tokens that ``run`` passes."""
    # The features of a layer that no token reaches have equal norms. Tokens can choose other experts once the blocks
    # before are pruned.
    with _squared_inputs(modules) as squares:
        run()
    for name, module in modules.items():
        if name not in squares:
            _logger.warning(
                "no calibration token reaches %s once the blocks before are pruned: pruned by magnitude", name
            )
            weight = module.get_parameter("weight")
            squares[name] = torch.ones(weight.shape[0 if is_transposed(module) else 1], device=weight.device)
        _check_finite(name, squares[name], " once the blocks before are pruned: load the model again, in float32")
    return {name: found.sqrt() for name, found in squares.items()}


@contextlib.contextmanager
def _squared_inputs(modules: Mapping[str, nn.Module]) -> Generator[dict[str, Tensor]]:
    """Yield the sums of the squared inputs of the layers that are called inside the ``with`` block, by name."""
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
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(name: str, squares: Tensor, advice: str) -> None:
    if not bool(squares.isfinite().all()):
        raise NonFiniteError(f"{name}: an activation is not finite on the calibration tokens{advice}")


_PLAIN = (bool, int, float, str, torch.dtype, torch.device)
_RTOL = 1e-2  # half precision on another order of operations
_Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block for one batch, except the hidden states


def through_blocks(
    model: nn.Module, layers: Mapping[str, Iterable[str]], sequences: Sequence[Tensor], progress: bool = True
) -> Generator[tuple[str, Callable[[], object]]]:
    """Run a language model block by block: each block gets the outputs of the changed blocks before it."""
    # Yields the name of each block in ``layers``, and a function that passes all tokens through it. Before the first
    # one, checks that the tokens reach each of the named layers with finite inputs, and that the blocks one by one
    # compute what the model does. Use contextlib.closing if the loop can end early: closing the generator restores the
    # model's training mode.
    if not sequences:
        raise TokensError("the calibration set is empty: pass token sequences")
    check_vocabulary(model, sequences)
    stack = _stack(model, layers)
    modules = plain_modules(model)
    wanted = {layer: modules[layer] for names in layers.values() for layer in names}
    with (
        restored_modes(model),
        torch.no_grad(),
        progress_bar("pruning blocks", len(stack), progress) as advance,
    ):
        model.eval()
        with _squared_inputs(wanted) as squares:
            hidden, calls, last = _capture(model, stack, sequences)
        for name in wanted:
            if name not in squares:
                raise TokensError(
                    f"no calibration token reached {name}, or its weight is used without calling it: use more tokens, "
                    "exclude it from the allocation, or prune by magnitude"
                )
            _check_finite(name, squares[name], ": check the weights, or load the model in float32")
        for place, expected in last.items():
            _check_replay(stack, hidden, calls, place, expected)
        for name, block in stack.items():
            run = functools.partial(_run, block, hidden, calls[name])
            if name in layers:
                yield name, run
            hidden = run()
            advance(1)


def _check_replay(
    stack: Mapping[str, nn.Module],
    hidden: Sequence[Tensor],
    calls: Mapping[str, Sequence[_Call]],
    place: int,
    last: Tensor,
) -> None:
    """Check, for the batch at a place, that the blocks one by one compute what they compute inside the model."""
    states = [hidden[place]]
    try:
        for name, block in stack.items():
            states = _run(block, states, [calls[name][place]])
        same = states[0].shape == last.shape and torch.allclose(states[0], last, rtol=_RTOL, atol=_RTOL)
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise AllocationError(f"the blocks cannot be run one by one ({error}): prune by magnitude") from error
    if not same and bool(last.isfinite().all()):
        raise AllocationError("the blocks one by one do not compute what the model does: prune by magnitude")


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
) -> tuple[list[Tensor], dict[str, list[_Call]], dict[int, Tensor]]:
    """Return the inputs of the first block, the other arguments of every block, and outputs of the last by batch."""
    # The outputs are those of the first batch and of the last.
    # Other arguments differ between blocks (local and global attention). For one block most depend on the length only,
    # and are kept once; some depend on the tokens (Gemma 4, Zamba2).
    hidden: list[Tensor] = []
    calls: dict[str, list[_Call]] = {name: [] for name in blocks}
    known: dict[tuple[int, ...], int] = {}
    last: dict[int, Tensor] = {}

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
            calls[name].append((args[1:], options))
            if number < len(calls[name]) - 1 and _same_call(calls[name][number], calls[name][-1]):
                calls[name][-1] = calls[name][number]

        return keep

    def keep_output(_: nn.Module, __: tuple[Any, ...], found: Any) -> None:
        """Keep the output of the last block for the first batch, and for the last so far."""
        if len(last) > 1:
            last.popitem()
        last[len(hidden) - 1] = _first(found)

    handles = [block.register_forward_pre_hook(watch(name), with_kwargs=True) for name, block in blocks.items()]
    handles.append(list(blocks.values())[-1].register_forward_hook(keep_output))
    device = next(model.parameters()).device
    try:
        for batch in batches(sequences):
            model(input_ids=batch.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not last:
        raise AllocationError(f"{next(iter(blocks))} was not called by the model: cannot calibrate it")
    return hidden, calls, last


def _same_call(one: _Call, other: _Call) -> bool:
    """Return whether a block got the same arguments twice."""
    (args, options), (other_args, other_options) = one, other
    return options.keys() == other_options.keys() and _equal(
        (args, *options.values()), (other_args, *(other_options[name] for name in options))
    )


def _equal(one: Any, other: Any) -> bool:
    """Return whether two arguments are the same; two objects that a block may write to never are."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)


def _run(block: nn.Module, hidden: Sequence[Tensor], calls: Sequence[_Call]) -> list[Tensor]:
    """Return the hidden states after a block, for every batch."""
    return [_first(block(states, *rest, **options)) for states, (rest, options) in zip(hidden, calls, strict=True)]


def _first(result: Any) -> Tensor:
    """Return the hidden states in the output of a block."""
    states: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return states
