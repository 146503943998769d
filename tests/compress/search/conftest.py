"""A small LLaMA with random weights, and text for it."""

import pytest
import torch


@pytest.fixture
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    with torch.no_grad():  # at its first scale a block hardly changes the outputs
        for parameter in model.model.layers.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return model.train()


@pytest.fixture
def text():
    """Sequences of several lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (length,), generator=generator) for length in (30, 12, 25, 30, 7, 18, 30, 22)]
