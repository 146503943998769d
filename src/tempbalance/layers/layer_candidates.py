"""Find the parameters of a model that may be weight matrices, and the first and the last layer among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from tempbalance.layers.adapters import adapter_candidates
from tempbalance.layers.averages import is_average, skip_averages
from tempbalance.layers.blocks import in_block_order
from tempbalance.layers.dequantise import dequantised
from tempbalance.layers.modules import module_candidates
from tempbalance.layers.names import StateDict, TensorStore
from tempbalance.layers.select import Select
from tempbalance.layers.weights import Candidate
from tempbalance.layers.wrappers import plain_namer, plain_parameters

__all__ = ["find_candidates", "first_and_last", "first_convolution", "open_store"]


def find_candidates(
    source: nn.Module | Mapping[str, Tensor] | TensorStore, select: Select, sharded: bool
) -> list[Candidate]:
    """Return all candidates under their names without wrappers."""
    if isinstance(source, nn.Module):
        found = module_candidates(source, lora=select.lora, sharded=sharded)
        plain = plain_parameters(source)
    else:
        store = open_store(source)
        found = in_block_order(adapter_candidates(store, select.lora), lambda candidate: candidate.block)
        plain = plain_namer(store.tensors)
    return skip_averages([replace(c, name=plain(c.name), block=c.block and plain(c.block)) for c in found])


def open_store(source: Mapping[str, Tensor] | TensorStore) -> TensorStore:
    """Return named tensors, with quantised weights in place of their parts."""
    return dequantised(StateDict(source) if isinstance(source, Mapping) else source)


def first_and_last(model: nn.Module) -> tuple[str | None, str | None]:
    """Return the parameters of the first and the last layer of a model, also if these cannot be analysed.

    Args:
        model: A live model.

    Returns:
        Their names, in the order in which the model defines its layers. Embeddings come before the first layer, but a
        head tied to one is the last layer; a parameter of a module of unknown type is no layer. None without layers.

    Example:
        >>> first_and_last(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Conv1d(4, 1, 3)))
        ('1.weight', '2.weight')
    """
    found = [c for c in find_candidates(model, Select(), True) if not is_average(c.role.reason)]
    layers = [(c.name, c.role.kind) for c in found if c.role.kind != "parameter"]
    first = next((name for name, kind in layers if kind != "embedding"), None)
    return first, layers[-1][0] if layers else None


def first_convolution(candidates: Iterable[Candidate]) -> str | None:
    """Return the parameter of the first convolution, also if it cannot be analysed; None without convolutions.

    Args:
        candidates: A result of ``find_candidates``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
        >>> first_convolution(find_candidates(net, Select(), False))
        '0.weight'
    """
    return next((c.name for c in candidates if c.role.kind.startswith("conv") and not is_average(c.role.reason)), None)
