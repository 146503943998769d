"""Candidates, and the weights (rows) that they become."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tempbalance.layers.fused import Fused, Index, Reader
from tempbalance.spectra.matrices import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["KINDS", "Candidate", "Role", "Weight", "storage_identity", "to_weights"]

KINDS = (
    "linear",
    *(f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)),
    *("embedding", "attention", "rnn", "experts", "spectral_conv", "lora", "parameter"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight matrix of a model, or a batch of matrices of one shape: one row of an analysis.

    Attributes:
        name: Qualified parameter name; a part of a fused parameter is ``name:part``.
        kind: One of ``KINDS``.
        block: Name of its transformer block (or other repeated unit); None outside of blocks and for tables.
        shape: Shape of this part.
        layout: How the axes form matrices.
        read: Reads its parameter, or the part of it at an index, in the stored dtype.
        cut: Reads this part, given a function that reads the parameter.
        transposed: Whether it is stored as ``(in, out)``, unlike ``nn.Linear``.
        quantisation: Format and bits, if it is stored quantised; else empty.
    """

    name: str
    kind: str
    block: str | None
    shape: tuple[int, ...]
    layout: Layout
    read: Reader
    cut: Callable[[Reader], Tensor]
    transposed: bool = False
    quantisation: str = ""

    def load(self) -> Tensor:
        """Read this part in the stored dtype; for a live model it may be a view, which must not be written to."""
        return self.cut(self.read)

    def within(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor with the shape of its parameter, as a view if the layout allows it."""
        return self.cut(lambda index: tensor[index] if index else tensor)

    @property
    def parameter(self) -> str:
        """Qualified name of its parameter."""
        return self.name.partition(":")[0]

    @property
    def fan(self) -> tuple[int, int] | None:
        """Number of inputs (with kernel taps; 1 for an embedding) and of outputs; None if the axes are not known."""
        if self.kind in {"experts", "lora", "parameter"}:
            return None
        first, second = self.shape[:2]
        if self.kind == "embedding":
            return 1, second
        if self.kind == "spectral_conv":
            return first, second
        taps = math.prod(self.shape[2:])
        inputs, outputs = (first, second) if self.transposed or "transpose" in self.kind else (second, first)
        return inputs * taps, outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Classification of a parameter by its module, name, shape and dtype.

    Attributes:
        kind: As in :class:`Weight`.
        layout: How the axes form matrices; ``Layout.STACK`` with kind ``experts`` or ``lora`` becomes one row per
            expert.
        fused: Layout of the parts if the parameter (or one expert of a stack) contains several matrices.
        joined: Whether the axes after the first are one axis of the matrix (heads, and features of a head).
        transposed: Whether it is stored as ``(in, out)``, unlike ``nn.Linear``.
        reason: Reason why it cannot be analysed, or None.
    """

    kind: str
    layout: Layout = Layout.MATRIX
    fused: Fused | None = None
    joined: bool = False
    transposed: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A parameter with two axes or more, which becomes rows or is skipped with a reason.

    Attributes:
        name: Qualified parameter name.
        role: Classification of the parameter.
        shape: Shape as stored.
        dtype: Dtype as stored; None if it is computed from several tensors.
        read: Reads the parameter at an index, ``()`` for all of it.
        identity: A key that is equal for two names of one tensor (tied weights); None if unknown.
        block: Name of its block.
        quantisation: Format and bits, if it is stored quantised; else empty.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Reader
    identity: Hashable = None
    block: str | None = None
    quantisation: str = ""

    def skipped(self, reason: str | None) -> Candidate:
        """Return it with a reason, unless it has one."""
        return replace(self, role=replace(self.role, reason=self.role.reason or reason))


def storage_identity(tensor: Tensor) -> Hashable:
    """Return a key that is equal for two tensors with the same memory, even if they are different objects."""
    try:
        if not tensor.is_meta and tensor.numel() and tensor.data_ptr():
            return (tensor.device, tensor.data_ptr(), tensor.numel(), tensor.dtype)
    except Exception:  # whatever a tensor subclass without storage raises
        pass
    return id(tensor)


def to_weights(candidate: Candidate, *, split: bool) -> Iterator[Weight]:
    """Yield the rows of a candidate: one, or one per expert, and with ``split`` one per fused part."""
    role = candidate.role
    if role.kind in {"experts", "lora"} and role.layout is Layout.STACK:
        for expert in range(candidate.shape[0]):
            yield from _parts(candidate, f"{candidate.name}:{expert}", (expert,), candidate.shape[1:], split)
    else:  # the parts of experts in one matrix (DBRX) are the experts
        yield from _parts(candidate, candidate.name, (), candidate.shape, split or role.kind == "experts")


def _parts(candidate: Candidate, name: str, index: Index, shape: tuple[int, ...], split: bool) -> Iterator[Weight]:
    """Yield the rows of one matrix of a candidate: one, or one per fused part."""
    role = candidate.role
    make = functools.partial(
        Weight,
        kind=role.kind,
        block=None if role.kind == "embedding" else candidate.block,  # a table is no part of its block's mean alpha
        layout=Layout.MATRIX if index else role.layout,
        read=candidate.read,
        transposed=role.transposed,
        quantisation=candidate.quantisation,
    )
    if role.joined:
        yield make(name=name, shape=(shape[0], math.prod(shape[1:])), cut=lambda read: read(()).flatten(1))
        return
    if role.fused is None or not split:
        yield make(name=name, shape=shape, cut=lambda read: read(index))
        return
    for number, part in enumerate(role.fused.parts):
        cut = functools.partial(role.fused.take, number, index=index)
        yield make(name=f"{name}:{part}", shape=role.fused.shape_of(number, shape), cut=cut)
