"""A small language model from scratch, a task on which learning rates by role help."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempbalance.demo.digits import one_thread

if TYPE_CHECKING:
    from tempbalance.study import Method

__all__ = ["CANDIDATES", "train_language_model"]

# The rates were chosen from 0.002, 0.004, 0.008, 0.016 and 0.032 for each, on seeds 100 to 102.
CANDIDATES = {
    "one rate": "plain:lr=0.004",
    "values and outputs at a quarter": "by_role:multipliers={'v':0.25,'o':0.25},lr=0.008",
    "control: queries and keys instead": "by_role:multipliers={'q':0.25,'k':0.25},lr=0.008",
}
_BYTES, _WIDTH, _BLOCKS, _HEADS = 128, 64, 2, 4
_CONTEXT, _BATCH, _STEPS, _WARMUP = 64, 16, 100, 0.1
_HELD_OUT, _EVALUATED = 0.1, 256


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(4))
        self.up_proj, self.down_proj = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down_proj(F.gelu(self.up_proj(self.norm2(x))))
        return out


class _LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(_BYTES, _WIDTH), nn.Embedding(_CONTEXT, _WIDTH)
        self.layers = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.lm_head = nn.Linear(_WIDTH, _BYTES, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the bytes after the first, in nats."""
        x = self.embed(ids[:, :-1]) + self.pos_embed.weight[: ids.shape[1] - 1]
        for block in self.layers:
            x = block(x)
        return F.cross_entropy(self.lm_head(self.norm(x)).flatten(0, 1), ids[:, 1:].flatten())


@one_thread()
def train_language_model(seed: int, method: Method, lr: float = 4e-3, *, steps: int = _STEPS) -> dict[str, float]:
    """Return the loss after training on the documentation of Python, byte by byte: a task for ``tempbalance.study``.

    The loss is that on the last tenth of the text, in nats per byte. ``lr`` is the highest learning rate of AdamW; a
    step has 1,024 bytes.
    """
    torch.manual_seed(seed)
    model, text = _LanguageModel(), _text()
    split = len(text) - int(_HELD_OUT * len(text))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    method.balance(optimizer, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (_WARMUP * steps), (1 + math.cos(math.pi * step / steps)) / 2)
    )
    for _ in range(steps):
        starts = torch.randint(split - _CONTEXT - 1, (_BATCH,)).tolist()
        loss = model.loss(torch.stack([text[start : start + _CONTEXT + 1] for start in starts]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        windows = text[split:].unfold(0, _CONTEXT + 1, _CONTEXT)[:_EVALUATED]
        return {"test": model.loss(windows).item()}


@functools.cache
def _text() -> Tensor:
    """Return the documentation of the language that comes with Python, as bytes."""
    from pydoc_data.topics import topics

    content = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
