"""How much of a model its rows hold: the number of its parameters, and of its weights inside blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tempbalance.layers.names import TensorStore, unreadable
from tempbalance.layers.weights import Candidate, Weight
from tempbalance.layers.wrappers import plain_namer, plain_parameters
from tempbalance.types import ModelSize

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["is_weight", "measure_size"]

# Reasons of skipped tensors that are no weights. A tensor that is skipped for any other reason counts as a weight.
_NO_WEIGHT = re.compile(
    r"tied to |embedding |bias of |a vector stored|state-space |a mask, |belongs to |integer buffer|not in "
    r"|a scale of |no LoRA |LoRA factor|a moving average of "
)
_STATISTIC = re.compile(r"(.*\.)?(running_(mean|var)|num_batches_tracked)")


def is_weight(reason: str) -> bool:
    """Return whether a tensor that is skipped for a reason counts as a weight that could not be analysed.

    Example:
        >>> is_weight("bias of shape (2, 3), not a weight matrix"), is_weight("4-bit floats: not supported")
        (False, True)
    """
    return not _NO_WEIGHT.match(reason)


def measure_size(
    source: nn.Module | TensorStore,
    weights: Sequence[Weight],
    skipped: Iterable[tuple[Candidate, str]],
    averages: Collection[str] = (),
) -> ModelSize:
    """Count the parameters of a model, without copies of them.

    Args:
        source: A live model or named tensors.
        weights: The rows that are selected.
        skipped: The candidates that are selected and have no row, each with the reason.
        averages: Names of the moving averages in it (EMA), without wrappers.

    Returns:
        The numbers of parameters.
    """
    found = [(weight.shape, weight.block) for weight in weights if weight.kind != "embedding"]
    found += [(c.shape, c.block) for c, reason in skipped if c.shape and is_weight(reason)]
    sizes = _of_model(source) if isinstance(source, nn.Module) else _of_store(source)
    if averages:
        plain = plain_parameters(source) if isinstance(source, nn.Module) else plain_namer(source.tensors)
        fronts = tuple(f"{average}." for average in averages)
        sizes = {name: size for name, size in sizes.items() if not plain(name).startswith(fronts)}
    return ModelSize(
        parameters=sum(sizes.values()),
        weights=sum(math.prod(shape) for shape, _ in found),
        block_weights=sum(math.prod(shape) for shape, block in found if block is not None),
    )


def _of_model(model: nn.Module) -> dict[str, int]:
    """Return the size of each parameter of a live model; a shared one is there once."""
    named = model.state_dict().items() if isinstance(model, torch.jit.ScriptModule) else model.named_parameters()
    return {name: _entries(parameter) for name, parameter in named}


def _entries(parameter: Tensor) -> int:
    try:
        return int(getattr(parameter, "ds_numel", None) or parameter.numel())
    except Exception:  # one that is not initialised yet, or whatever a subclass raises: it is listed as skipped
        return 0


def _of_store(store: TensorStore) -> dict[str, int]:
    """Return the size of floating-point and quantised tensors by name, without statistics; a tied one is there once."""
    reasons = unreadable(store)
    sizes: dict[Hashable, tuple[str, int]] = {
        (info.identity or name): (name, math.prod(info.shape))
        for name, info in reversed(list(store.tensors.items()))  # of tied ones, the first name stays
        if is_weight(reasons.get(name, "")) and not _STATISTIC.fullmatch(name)
    }
    return dict(sizes.values())
