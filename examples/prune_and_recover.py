"""Prune a language model and recover it. The model is trained here, on Python's reference: a byte is a token."""

import pydoc_data.topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tempbalance as tb

torch.manual_seed(0)
text = torch.tensor(list("\n".join(pydoc_data.topics.topics.values()).encode()))
train, test = text[:-20_000], text[-20_000:].split(64)[:64]

# %% Train a small LLaMA, so that there is something to lose
sizes = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=256, **sizes))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(200):
    batch = torch.stack([train[i : i + 64] for i in torch.randint(len(train) - 64, (8,))])
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()


def perplexity():
    return float(tb.perplexity(model, test, progress=False))


dense = perplexity()

# %% Prune 80 % by Wanda; OWL says how much in which block
calibration = tb.compress.draw_calibration([train], samples=32, length=64, seed=0)
ratios = tb.compress.outlier_ratios(model, calibration)
allocation = tb.allocate_sparsity(tb.analyze(model), 0.8, method="owl", outliers=ratios)
tb.prune(model, allocation, "wanda", calibration=calibration)
pruned = perplexity()

# %% Recover with LoRA, which keeps every zero
settings = tb.compress.RecoverySettings(lr=5e-3, batch=8, length=64)
result = tb.recover(model, [train[:20_000]], settings)

# %% The answer
print(f"perplexity: dense {dense:.2f}, pruned {pruned:.2f}, recovered {perplexity():.2f}")
print(f"still zero: {min(result.sparsity.values()):.0%} to {max(result.sparsity.values()):.0%} of each layer")
