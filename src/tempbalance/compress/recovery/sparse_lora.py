"""LoRA that keeps the zeros of a pruned layer: it trains and merges ``W + (W != 0) * (alpha/r) B A``.

This is SparsePEFT of SQFT (Muñoz, Yuan and Jain, Findings of EMNLP 2024, arXiv 2410.03750); LoSA (ICLR 2025, arXiv
2502.14816) masks the product, too. The update of an ordinary LoRA is dense, so setting the zeros again after merging
discards a part of it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tempbalance.compress.pruning.calibration import is_transposed
from tempbalance.errors import AllocationError, require_extra

__all__ = ["sparse_lora"]

_ADAPTER = "default"


@contextlib.contextmanager
def sparse_lora(model: nn.Module, layers: Sequence[str], rank: int) -> Generator[list[nn.Parameter]]:
    """Add LoRA to linear layers inside a ``with`` block, yield its factors, and merge it at the end."""
    # In half precision a weight and its update may cancel to a few more zeros. ``lora_alpha`` is twice the rank, as in
    # SQFT. If the block or merging raises, LoRA is removed and the model is unchanged.
    with require_extra("peft", "recovery needs PEFT"):
        import peft
    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    own = {layer: model.get_submodule(layer) for layer in layers}
    dense = {layer: module.get_parameter("weight").data for layer, module in own.items()}
    names = "|".join(map(re.escape, layers))  # a pattern: a list would match other layers whose names end in these, too
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    # Marked experimental, but the way that PEFT's developer guide documents for custom LoRA layers.
    config._register_custom_module(dict.fromkeys(map(type, own.values()), _layer_class()))
    try:
        try:
            adapted = peft.get_peft_model(model, config, adapter_name=_ADAPTER)
        except ValueError as error:  # such as the projections of Mamba, whose kernels do not call them
            raise AllocationError(
                f"PEFT cannot add LoRA to the pruned layers of {type(model).__name__}: {error}. Leave these layers out "
                "of the pruning"
            ) from error
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        for layer, module in own.items():  # merged in copies, whose memory training needed, too
            module.get_parameter("weight").data = dense[layer].clone()
        adapted.merge_and_unload(progressbar=False)
    except BaseException:  # Ctrl-C, too
        for layer, module in own.items():
            module.get_parameter("weight").data = dense[layer]
            owner, _, child = layer.rpartition(".")
            setattr(model.get_submodule(owner), child, module)
        raise
    finally:
        for parameter, flag in frozen.items():
            parameter.requires_grad_(flag)
        vars(model).pop("peft_config", None)  # else PEFT warns of a second adapter next time


@functools.cache
def _layer_class() -> type[Any]:
    from peft.tuners.lora.layer import Linear

    class SparseLoraLinear(Linear):  # type: ignore[misc]
        """A linear layer with LoRA whose update is zero where the weight is zero."""

        def __init__(self, base_layer: nn.Module, *args: Any, **options: Any) -> None:
            super().__init__(base_layer, *args, **options)
            self.fan_in_fan_out = is_transposed(base_layer)

        def get_delta_weight(self, adapter: str) -> Tensor:
            """Return the update, which PEFT merges and the balancer adds to the measured weight."""
            update: Tensor = super().get_delta_weight(adapter)
            weight: Tensor = self.get_base_layer().weight
            return update.masked_fill(weight == 0, 0).to(weight.dtype)

        def forward(self, x: Tensor) -> Tensor:
            """Apply the weight with its update, bit-identical to the merged layer."""
            base: Any = self.get_base_layer()
            weight = base.weight + self.get_delta_weight(_ADAPTER)
            return F.linear(x, weight.T if self.fan_in_fan_out else weight, base.bias)

    return SparseLoraLinear
