"""AlphaDecay at its size: LLaMA-60M on 1.3 billion tokens of C4, for one GPU.

Adam with coupled weight decay, gradients clipped at 1, a cosine with 10 % warm-up, 10,000 steps of 512 sequences of 256
tokens, mixed precision in bfloat16. The seed chooses the initial weights and where in the file training begins. Test
and validation are the halves of the validation file. The perplexity depends on the tokenizer, which the paper does not
name in the parts that we have read: compare gains rather than perplexities.

The data is a folder with ``train.npy`` and ``validation.npy``, each one row of token ids in uint16, see ``check``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from final_alpha import final_alpha
from pieces import Piece, generator
from torch import Tensor, nn

from tempbalance.errors import StudyError
from tempbalance.study import Method

BATCH, CONTEXT, VOCABULARY, EVALUATED = 512, 256, 32_000, 2048
WARMUP = 0.1
PARTS = ("train", "validation")
REHEARSAL = {
    "steps": 4,
    "batch_size": 4,
    "parts": 2,
    "context": 16,
    "hidden": 64,
    "intermediate": 128,
    "blocks": 2,
    "vocabulary": 64,
    "evaluated": 4,
}


def check(data: Path, parameters: Mapping[str, Any]) -> None:
    """Raise a StudyError unless the files have enough tokens of the vocabulary."""
    context = parameters.get("context", CONTEXT)
    sequences = {
        "train": parameters["steps"] * parameters.get("batch_size", BATCH),
        "validation": 2 * parameters.get("evaluated", EVALUATED),
    }
    for part in PARTS:
        path, needed = data / f"{part}.npy", sequences[part] * context
        tokens = read(data, part)
        if tokens.ndim != 1 or tokens.dtype != np.uint16 or len(tokens) < needed:
            raise StudyError(
                f"{path} has shape {tokens.shape} and type {tokens.dtype}; expected one row of at least {needed:,} "
                "token ids in uint16"
            )
        if (highest := int(tokens.max())) >= (vocabulary := parameters.get("vocabulary", VOCABULARY)):
            raise StudyError(f"{path} has the token {highest}; the model has a vocabulary of {vocabulary:,}")


def write_tiny(data: Path) -> None:
    """Write random tokens for the rehearsal."""
    for part in PARTS:
        np.save(data / f"{part}.npy", np.random.default_rng(0).integers(64, size=400).astype(np.uint16))


def read(data: Path, part: str) -> np.ndarray:
    """The tokens of a file, which stay on disk."""
    tokens: np.ndarray = np.load(data / f"{part}.npy", mmap_mode="r")
    return tokens


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 1e-3,
    *,
    data: str,
    steps: int = 10_000,
    batch_size: int = BATCH,
    parts: int = 4,
    context: int = CONTEXT,
    hidden: int = 512,
    intermediate: int = 1376,
    blocks: int = 8,
    vocabulary: int = VOCABULARY,
    evaluated: int = EVALUATED,
    weight_decay: float = 1e-5,
    piece: Piece | None = None,
) -> dict[str, float]:
    """Train once.

    Args:
        seed: Seed of everything random.
        method: How to balance.
        lr: Highest learning rate.
        data: Folder of the files.
        steps: Optimizer steps.
        batch_size: Sequences of a step.
        parts: Parts of a batch, whose gradients are summed, to save memory.
        context: Tokens of a sequence.
        hidden: Width of the model; heads have a width of 64, as in LLaMA-60M of GaLore.
        intermediate: Width of the MLP, as there.
        blocks: Number of blocks.
        vocabulary: Number of tokens.
        evaluated: Sequences to validate and to test on.
        weight_decay: Of Adam, coupled.
        piece: Where to train, and for how long.

    Returns:
        Perplexities on test and validation text; alphas of the last weights; seconds of training.
    """
    piece = piece or Piece()
    tokens = read(Path(data), "train")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        max_position_embeddings=context,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).to(piece.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    method.balance(optimizer, model, steps_per_epoch=steps)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)

    count = len(tokens) // context
    first = int(torch.randint(count, (), generator=generator(seed, 0)))
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    model.train()
    for step in piece.steps(f"{method.name} {lr} {seed}", steps, state, method):
        places = (first + step * batch_size + torch.arange(batch_size)) % count
        for chosen in places.chunk(parts):
            ids = sequences(tokens, chosen, context, piece.device)
            with torch.autocast(torch.device(piece.device).type, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            (loss * len(chosen) / batch_size).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    held_out = read(Path(data), "validation")
    halves = zip(("validation", "test"), np.array_split(held_out, 2), strict=True)
    found = {name: perplexity(model, half, context, evaluated, piece.device) for name, half in halves}
    return {**found, **final_alpha(model), "seconds": piece.spent}


def sequences(tokens: np.ndarray, places: Tensor, context: int, device: str) -> Tensor:
    """Sequences by their number in the file, (sequences, context)."""
    found = np.stack([tokens[place * context : (place + 1) * context] for place in places.tolist()])
    return torch.from_numpy(found.astype(np.int64)).to(device)


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: np.ndarray, context: int, evaluated: int, device: str) -> float:
    """Compute the perplexity on the first sequences; NaN if the model has diverged."""
    model.eval()
    losses = []
    for chosen in torch.arange(evaluated).split(64):
        ids = sequences(tokens, chosen, context, device)
        losses += [float(model(input_ids=ids, labels=ids).loss)] * len(chosen)
    mean = math.fsum(losses) / evaluated
    return math.exp(mean) if mean < 100 else math.nan
