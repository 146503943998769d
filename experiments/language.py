"""Language modelling from scratch, a task for ``tempbalance study`` (as in AlphaDecay and LLR, at a size for a CPU).

A LLaMA of 0.9 million parameters, AdamW, warm-up and cosine, on the real text of ``train_lm.py``: cross-entropy in nats
per token after the last step, so lower is better. The seed chooses the initial weights, the sequences of each step and,
with ``tokens``, the passages. Validation and test are the two halves of the last 5 % of each text. The papers
train 60 million to 1 billion parameters on C4. For example

    tempbalance study --task experiments/language.py --out language --lower-is-better --seeds 20 --lr 1e-3 2e-3 4e-3 \
        --methods alphadecay:every=20 alphadecay:every=20,control=uniform

Alphas are measured every 500 of 10,000 to 90,000 steps in AlphaDecay; ``every=20`` is as often, for 400 steps, as in
its shortest run. A method ``decay:weight_decay=0.3`` trains with another weight decay than 0.1, alone or joined with a
recipe (``decay:weight_decay=0.3+alphadecay:every=20``), so that it can be tuned for both. ``muon`` trains the matrices
of the blocks with Muon in place of AdamW.

``--set data=DIR`` names a folder with the texts that ``train_lm.py`` names.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from final_alpha import final_alpha
from torch import Tensor
from train_lm import (
    BETAS,
    HELD_OUT,
    TRAINING,
    Settings,
    batch,
    build,
    encode,
    learn,
    optimizer_for,
    perplexity,
    texts,
    train_tokenizer,
)

from tempbalance.errors import NotFoundError, StudyError
from tempbalance.study import Method

DATA = Path(__file__).parents[2] / "shared" / "data" / "lm"
SMALL = Settings(batch_size=8, context=128, vocabulary=1024, hidden=128, intermediate=352, blocks=4, heads=4)
WARMUP = 0.1  # share of the steps, as in AlphaDecay
EVALUATED = 256  # sequences
PASSAGE = SMALL.batch_size * SMALL.context  # tokens, as many as in a step


@dataclass(frozen=True)
class Decay:
    """Another base weight decay.

    Attributes:
        weight_decay: Weight decay of AdamW, for all matrices.
    """

    weight_decay: float


METHODS = {"decay": Decay}
SUPPORTS = ("optimizers",)


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 3e-3,
    *,
    steps: int = 400,
    tokens: int | None = None,
    width: int = SMALL.hidden,
    blocks: int = SMALL.blocks,
    weight_decay: float = SMALL.weight_decay,
    bfloat16: bool = True,
    evaluated: int = EVALUATED,
    data: str = str(DATA),
) -> dict[str, float]:
    """Train once.

    Args:
        seed: Seed of everything random.
        method: How to balance, and with which weight decay.
        lr: Highest learning rate.
        steps: Optimizer steps, of 1,024 tokens each.
        tokens: Tokens of training text, in passages of 1,024 drawn from all texts; None for all.
        width: Width of the model, a multiple of 32, the width of a head.
        blocks: Number of blocks.
        weight_decay: Weight decay of AdamW, unless the method has its own.
        bfloat16: Whether to train in mixed precision, as the first study did; float32 is faster on most CPUs.
        evaluated: Sequences of 128 tokens to evaluate on, of each part.
        data: Folder of the texts.

    Returns:
        Cross-entropies on validation, test and training text; alphas of the last weights.
    """
    decay = next((own.weight_decay for own in method.custom if isinstance(own, Decay)), weight_decay)
    settings = replace(
        SMALL,
        seed=seed,
        steps=steps,
        lr=lr,
        weight_decay=decay,
        hidden=width,
        intermediate=width * SMALL.intermediate // SMALL.hidden,
        heads=width * SMALL.heads // SMALL.hidden,
        blocks=blocks,
    )
    streams = load(data)
    streams = {**streams, "train": excerpt(streams["train"], tokens, seed)}
    model = build(settings)
    steps_per_epoch = len(streams["train"]) // PASSAGE

    optimizers = method.optimizers(model, lr, decay, BETAS) or [optimizer_for(model, settings)]
    method.balance(optimizers[-1], model, steps_per_epoch=steps_per_epoch)
    schedulers = [
        transformers.get_cosine_schedule_with_warmup(each, round(WARMUP * steps), steps) for each in optimizers
    ]
    for step in range(steps):
        learn(model, batch(streams["train"], settings, step), optimizers, settings.clip, bfloat16=bfloat16)
        for scheduler in schedulers:
            scheduler.step()
    losses = {
        part: math.log(perplexity(model, stream, settings.context, evaluated)) for part, stream in streams.items()
    }
    return {**losses, **final_alpha(model)}


@functools.cache
def load(data: str) -> dict[str, Tensor]:
    """Read the training, validation and test texts, each as one stream of tokens."""
    folder = Path(data)
    for name in (*TRAINING, *HELD_OUT):
        if not (folder / name).is_file():
            raise NotFoundError(
                f"there is no {folder / name}: get the texts that train_lm.py names, and name their folder by "
                "--set data=DIR"
            )
    training, held_out = texts(folder, SMALL.held_out_share)
    ends = held_out[: len(TRAINING)]
    parts = {
        "train": training,
        "validation": [end[: len(end) // 2] for end in ends],
        "test": [end[len(end) // 2 :] for end in ends],
    }
    tokenizer = train_tokenizer(training, SMALL.vocabulary)
    return {part: torch.from_numpy(encode(tokenizer, content)).long() for part, content in parts.items()}


def excerpt(stream: Tensor, tokens: int | None, seed: int) -> Tensor:
    """A number of tokens, rounded down to complete passages, which the seed draws; all tokens for None."""
    if tokens is None:
        return stream
    if not PASSAGE <= tokens <= len(stream):
        raise StudyError(f"tokens must be {PASSAGE} to {len(stream)}, the length of the text, got {tokens}")
    passages = stream[: len(stream) // PASSAGE * PASSAGE].view(-1, PASSAGE)
    drawn = torch.randperm(len(passages), generator=torch.Generator().manual_seed(seed))
    return passages[drawn[: tokens // PASSAGE]].flatten()
