"""Zeros of a pruned model as masks of torch.nn.utils.prune."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import tempbalance as tb
from tempbalance.compress import Allocation, export_torch
from tempbalance.errors import AllocationError

Allocate = Callable[..., Allocation]


def test_masks_keep_the_zeros_through_training(trained: nn.Sequential, zeros_of: Callable[..., Any]):
    allocation = tb.allocate_sparsity(tb.analyze(trained, progress=False), sparsity=0.6, unit="layer", method="alpha")
    tb.prune(trained, allocation, progress=False)
    export_torch(allocation, trained)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        trained(torch.randn(8, 80, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        optimizer.step()
    for layer in trained:
        torch_prune.remove(layer, "weight")
    assert zeros_of(trained, allocation) == {layer.name: layer.zeros for layer in allocation.layers}


def test_parts_of_one_parameter_share_its_mask(allocation_of: Allocate):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    name = "transformer.h.0.attn.c_attn.weight"
    allocation = allocation_of({f"{name}:q": 64, f"{name}:v": 192}, {f"{name}:q": (16, 16), f"{name}:v": (16, 16)})
    tb.prune(model, allocation, progress=False)
    export_torch(allocation, model)
    mask = model.transformer.h[0].attn.c_attn.weight_mask
    assert [int((part == 0).sum()) for part in mask.split(16, dim=1)] == [64, 0, 192]


def test_a_model_without_the_allocated_zeros_gets_no_mask(trained: nn.Sequential):
    allocation = tb.allocate_sparsity(tb.analyze(trained, progress=False), sparsity=0.6, unit="layer", method="alpha")
    before = list(trained.state_dict())
    with pytest.raises(AllocationError, match="prune the model first"):
        export_torch(allocation, trained)
    assert list(trained.state_dict()) == before


def test_an_allocation_for_another_model_gives_no_masks(trained: nn.Sequential, allocation_of: Allocate):
    allocation = allocation_of({"0.weight": 8}, {"0.weight": (4, 4)})
    with pytest.raises(AllocationError, match="another model"):
        export_torch(allocation, trained)
