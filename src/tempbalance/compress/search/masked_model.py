"""A live language model with any number of zeros in each weight, from scores that are computed once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.pruning.calibration import is_transposed, norms_by_block
from tempbalance.compress.pruning.masks import magnitude_scores, wanda_scores
from tempbalance.compress.pruning.pruner import Criterion, linear_layers
from tempbalance.compress.pruning.targets import find_targets, write_part
from tempbalance.layers import parameter_names, plain_modules, unwrapped

__all__ = ["MaskedModel"]


class MaskedModel:
    """A model whose allocated weights can have any number of zeros, by magnitude or Wanda score.

    Attributes:
        model: The model, with the zeros that were set last.
    """

    def __init__(
        self,
        model: nn.Module,
        allocation: Allocation,
        criterion: Criterion,
        sequences: Sequence[Tensor],
        progress: bool,
    ) -> None:
        """Copy the weights of the allocation, and compute the norms of their inputs, if the criterion uses them."""
        self.model = unwrapped(model)
        self._parameters, self._modules = parameter_names(self.model), plain_modules(self.model)
        self._targets = find_targets(self.model, allocation, lambda weight: weight.parameter in self._parameters)
        self._dense = [
            target.weight.within(self._parameter(place)).detach().clone() for place, target in enumerate(self._targets)
        ]
        self._zeros = [0] * len(self._targets)
        self._norms: dict[str, Tensor] = {}
        if criterion != "magnitude":
            self._measure_norms(sequences, progress)

    def _measure_norms(self, sequences: Sequence[Tensor], progress: bool) -> None:
        """Measure the inputs of each block with the blocks before it pruned by the allocation, as ``prune`` does."""
        by_block = linear_layers(self._modules, self._targets)
        layers = {block: [target.module for target in found] for block, found in by_block.items()}
        places = {target.name: place for place, target in enumerate(self._targets)}
        try:
            with contextlib.closing(norms_by_block(self.model, layers, sequences, progress)) as blocks:
                for block, norms in blocks:
                    self._norms |= norms
                    for target in by_block[block]:
                        self._set(places[target.name], target.layer.zeros)
        finally:
            self.restore()

    def _parameter(self, place: int) -> Tensor:
        return self._parameters[self._targets[place].weight.parameter]

    @property
    def digest(self) -> str:
        """Hash of the dense weights."""
        found = hashlib.sha256()
        for target, dense in zip(self._targets, self._dense, strict=True):
            found.update(f"{target.name} {dense.dtype}".encode())
            found.update(dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def set_zeros(self, zeros: Sequence[int]) -> None:
        """Prune every weight to its number of zeros; weights that have it already are not touched."""
        for place, count in enumerate(zeros):
            if count != self._zeros[place]:
                self._set(place, count)

    def restore(self) -> None:
        """Restore the dense weights."""
        for place in range(len(self._targets)):
            write_part(self._parameter(place), self._targets[place].weight, self._dense[place])
        self._zeros = [0] * len(self._targets)

    def _set(self, place: int, count: int) -> None:
        target, parameter = self._targets[place], self._parameter(place)
        write_part(parameter, target.weight, self._dense[place])
        score: Callable[[Tensor], Tensor] = magnitude_scores
        if self._norms:
            score = functools.partial(wanda_scores, norms=self._norms[target.module])
        replace(target, layer=replace(target.layer, zeros=count)).prune(
            parameter, score, transposed=is_transposed(self._modules[target.module]), by_row=bool(self._norms)
        )
        self._zeros[place] = count
