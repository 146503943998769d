"""Outlier ratios of the blocks, for OWL: the fraction of weights with a large Wanda score."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from tempbalance.compress.evaluation.tokens import Documents, read_documents
from tempbalance.compress.pruning.calibration import is_transposed, norms_by_block
from tempbalance.compress.pruning.masks import wanda_scores
from tempbalance.errors import AllocationError
from tempbalance.layers import Select, find_weights, plain_modules
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["outlier_ratios"]


def outlier_ratios(
    model: nn.Module, calibration: Documents, threshold: float = 5.0, *, progress: bool = True
) -> dict[str, float]:
    """Compute the fraction of outliers among the weights of each block (OWL: Yin et al., ICML 2024, section 3.2).

    A weight is an outlier if its Wanda score exceeds ``threshold`` times the mean score of its block.
    ``allocate_sparsity(..., method="owl", outliers=...)`` prunes blocks with many outliers less.

    Args:
        model: A Hugging Face causal language model; it is not changed.
        calibration: Token ids, as for ``prune``.
        threshold: The paper's M: 5 for LLaMA-7B and 13B, 7 and more for others.
        progress: Whether to show a progress bar (on a terminal only).

    Returns:
        A number in [0, 1] for each block, by name.

    Raises:
        TokensError: The calibration set is empty.
        AllocationError: The model has no single stack of blocks, or a weight in a block is not that of a linear layer.
    """
    weights, _ = find_weights(model, Select(split=False))
    layers: dict[str, list[str]] = {}
    result, modules = {}, plain_modules(model)
    for weight in weights:
        if weight.block is not None:
            name, _, attribute = weight.parameter.rpartition(".")
            if attribute != "weight" or len(weight.shape) != MATRIX_NDIM:
                raise AllocationError(
                    f"OWL counts outliers in linear layers, and {weight.parameter} is not the weight of one: choose "
                    "another allocation, such as method='uniform' (--allocation uniform)"
                )
            layers.setdefault(weight.block, []).append(name)
    with contextlib.closing(norms_by_block(model, layers, read_documents(calibration), progress)) as blocks:
        for block, norms in blocks:
            pooled = torch.cat([_scores(modules[name], norm) for name, norm in norms.items()])
            result[block] = float((pooled > threshold * pooled.mean()).double().mean())
    return result


def _scores(module: nn.Module, norms: Tensor) -> Tensor:
    weight = module.get_parameter("weight")
    return wanda_scores(weight.T if is_transposed(module) else weight, norms).flatten()
