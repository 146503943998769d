"""A live language model with any number of zeros in each weight, by scores of the dense weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tempbalance.compress.allocation import Allocation
from tempbalance.compress.pruning.calibration import norms_by_block
from tempbalance.compress.pruning.masks import magnitude_scores, wanda_scores
from tempbalance.compress.pruning.pruner import Criterion, linear_layers
from tempbalance.compress.pruning.targets import find_targets
from tempbalance.compress.search.varied_model import VariedModel
from tempbalance.layers import parameter_names, plain_modules, unwrapped

__all__ = ["MaskedModel"]

_MASKS = 4  # for each weight, at one bit an entry: those of the parent, and of some of its children


class MaskedModel(VariedModel):
    """A model whose allocated weights can have any number of zeros (the levels), by magnitude or Wanda score."""

    def __init__(
        self,
        model: nn.Module,
        allocation: Allocation,
        criterion: Criterion,
        sequences: Sequence[Tensor],
        progress: bool,
    ) -> None:
        """Find the weights of the allocation, and compute the norms of their inputs, if the criterion uses them."""
        root = unwrapped(model)
        parameters, self._modules = parameter_names(root), plain_modules(root)
        self._targets = find_targets(root, allocation, lambda weight: weight.parameter in parameters)
        self._norms: dict[str, Tensor] = {}
        self._mask = functools.lru_cache(maxsize=_MASKS * len(self._targets))(self._find_mask)
        super().__init__(root, [target.weight for target in self._targets], self._masked)
        if criterion != "magnitude":
            try:
                self._measure_norms(sequences, progress)
            except BaseException:
                self.close()
                raise
            self.restore()

    def _measure_norms(self, sequences: Sequence[Tensor], progress: bool) -> None:
        """Measure the inputs of each block with the blocks before it pruned by the allocation, as ``prune`` does."""
        by_block = linear_layers(self._modules, self._targets)
        layers = {block: [target.module for target in found] for block, found in by_block.items()}
        zeros = [0] * len(self._targets)
        with contextlib.closing(norms_by_block(self.model, layers, sequences, progress)) as blocks:
            for block, norms in blocks:
                self._norms |= norms
                zeros = [
                    target.layer.zeros if target.weight.block == block else count
                    for target, count in zip(self._targets, zeros, strict=True)
                ]
                self.set_levels(zeros)

    def _masked(self, place: int, dense: Tensor, count: int) -> Tensor:
        bits = np.unpackbits(self._mask(place, count), count=dense.numel())
        return dense.masked_fill(torch.from_numpy(bits).view(torch.bool).view(dense.shape).to(dense.device), 0)

    def _find_mask(self, place: int, count: int) -> Any:
        """Mark the zeros of a weight, one bit an entry."""
        target = self._targets[place]
        score: Callable[[Tensor], Tensor] = magnitude_scores
        if self._norms:
            score = functools.partial(wanda_scores, norms=self._norms[target.module])
        mask = replace(target, layer=replace(target.layer, zeros=count)).mask(
            self.dense(place), score, by_row=bool(self._norms)
        )
        return np.packbits(mask.cpu().numpy(), axis=None)
