"""LoRA that keeps the zeros of a pruned layer: what is trained and what is merged is ``W + (W != 0) * (alpha/r) B A``.

This is SparsePEFT of SQFT (Muñoz, Yuan and Jain, Findings of EMNLP 2024, arXiv 2410.03750); LoSA (ICLR 2025, arXiv
2502.14816) masks the product, too. An ordinary LoRA is dense: to set the zeros again after merging it throws away a
part of what it has learned.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tempbalance.compress.pruning.calibration import is_transposed
from tempbalance.errors import MissingExtraError

__all__ = ["sparse_lora"]

_ADAPTER = "default"


@contextlib.contextmanager
def sparse_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Generator[list[nn.Parameter]]:
    """Put LoRA on linear layers of a model for as long as the block lasts, and merge it at the end.

    The zeros of a layer stay zero (in half precision a weight and its update may cancel to a few more), and the merged
    layers give what the adapted ones gave. If the block fails, LoRA is taken off again and the model is as before.

    Args:
        model: A live model; it changes in place.
        layers: Names of linear layers (``nn.Linear``, or ``Conv1D`` of Transformers).
        rank: Of the factors; ``lora_alpha`` is twice that, as in SQFT.

    Yields:
        The factors, the only parameters that require a gradient meanwhile.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("recovery trains with LoRA: pip install 'tempbalance[peft]'") from error
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(layers))
    kinds = {type(model.get_submodule(layer)) for layer in layers}
    # PEFT calls this experimental; it is its documented way to bring one's own LoRA layer (developer guide).
    config._register_custom_module(dict.fromkeys(kinds, _layer_class()))
    adapted = peft.get_peft_model(model, config, adapter_name=_ADAPTER)
    try:
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        adapted.merge_and_unload(progressbar=False)
    except BaseException:  # Ctrl-C, too
        adapted.unload()
        raise
    finally:
        for parameter, flag in frozen.items():
            parameter.requires_grad_(flag)
        vars(model).pop("peft_config", None)  # without it, PEFT would warn of a second adapter next time


@functools.cache
def _layer_class() -> type[Any]:
    from peft.tuners.lora.layer import Linear

    class SparseLoraLinear(Linear):  # type: ignore[misc]
        """A linear layer with LoRA whose update is zero wherever the weight is."""

        def __init__(self, base_layer: nn.Module, *args: Any, **options: Any) -> None:
            super().__init__(base_layer, *args, **options)
            self.fan_in_fan_out = is_transposed(base_layer)

        def get_delta_weight(self, adapter: str) -> Tensor:
            """The update: what PEFT merges, and what the balancer adds to the weight that it measures."""
            update: Tensor = super().get_delta_weight(adapter)
            weight: Tensor = self.get_base_layer().weight
            return update.masked_fill(weight == 0, 0).to(weight.dtype)

        def forward(self, x: Tensor) -> Tensor:
            """Apply the merged weight, bit for bit."""
            base: Any = self.get_base_layer()
            weight = base.weight + self.get_delta_weight(_ADAPTER)
            return F.linear(x, weight.T if self.fan_in_fan_out else weight, base.bias)

    return SparseLoraLinear
