"""Train a small LLaMA on real text, for pruning studies without download or GPU.

    python experiments/train_lm.py --data DIR --out DIR [--steps 2200] [--threads 1] [--seed 0] [--float32]

``--data`` has the files named in ``TRAINING`` and ``HELD_OUT`` below: the Brown corpus, War and Peace, Tiny
Shakespeare, 1,000 TinyStories and WikiText-2, 12 MB of training text. ``--out`` becomes a Hugging Face folder
(safetensors, configuration, tokenizer) with three more files: ``train.npz`` and ``held_out.npz``, each with one stream
of ``tokens``, and ``training.json``, with settings, versions, losses and held-out perplexity.

Held out from model and tokenizer are the last 5 % of each training file, and the test file of WikiText-2.

The same command resumes from the last checkpoint, with the same losses; before the rate decays, also with another
number of steps. 2,200 steps take about half an hour on one free core of a server with bfloat16 instructions;
without these (``lscpu`` has no ``avx512_bf16``), ``--float32`` is several times as fast as mixed precision.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.optim import Optimizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tempbalance as tb
from tempbalance._files import write_atomically
from tempbalance._progress import progress_bar

TRAINING = ("brown.txt", "warandpeace.txt", "tinyshakespeare.txt", "tinystories_1000.json", "wikitext-2/valid.txt")
HELD_OUT = ("wikitext-2/test.txt",)
BETAS = (0.9, 0.95)
END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. The number of steps was chosen by the available time; nothing was tuned."""

    steps: int = 2200
    seed: int = 0
    batch_size: int = 8
    context: int = 256
    vocabulary: int = 4096
    hidden: int = 192
    intermediate: int = 512
    blocks: int = 8
    heads: int = 6
    lr: float = 1.5e-3
    weight_decay: float = 0.1
    warmup: int = 250  # steps of warm-up
    decay: float = 0.3  # part of the steps, at the end, in which the rate decays to zero
    clip: float = 1.0
    held_out_share: float = 0.05
    every: int = 250  # steps between evaluations, and between checkpoints
    bfloat16: bool = True  # mixed precision


def texts(folder: Path, held_out_share: float) -> tuple[list[str], list[str]]:
    """Read the training texts and the held-out texts."""
    training, held_out = list[str](), list[str]()
    for name in TRAINING:
        content = (folder / name).read_text(encoding="utf-8")
        text = END.join(json.loads(content)) if name.endswith(".json") else content
        end = round(len(text) * (1 - held_out_share))
        training.append(text[:end])
        held_out.append(text[end:])
    return training, held_out + [(folder / name).read_text(encoding="utf-8") for name in HELD_OUT]


def train_tokenizer(training: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(training), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def lines(parts: list[str]) -> Iterator[str]:
    """Yield all lines; books are too long for the tokenizer."""
    return (line for text in parts for line in text.splitlines(keepends=True))


def encode(tokenizer: PreTrainedTokenizerFast, parts: list[str]) -> np.ndarray:
    """Encode the texts as one stream of tokens."""
    encoded = tokenizer(list(lines([text + END for text in parts])), return_attention_mask=False)["input_ids"]
    return np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in encoded if ids])


def prepare(data: Path, out: Path, settings: Settings) -> dict[str, Tensor]:
    """Write tokenizer and tokens to ``out`` if they are missing, and read the tokens."""
    paths = {name: out / f"{name}.npz" for name in ("train", "held_out")}
    if not all(path.exists() for path in paths.values()):
        training, held_out = texts(data, settings.held_out_share)
        tokenizer = train_tokenizer(training, settings.vocabulary)
        tokenizer.save_pretrained(out)
        for path, parts in zip(paths.values(), (training, held_out), strict=True):
            file = io.BytesIO()
            np.savez_compressed(file, tokens=encode(tokenizer, parts))
            write_atomically(path, file.getvalue())
    return {name: tb.compress.load_tokens(path)[0] for name, path in paths.items()}


def build(settings: Settings) -> LlamaForCausalLM:
    """Build the untrained model."""
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.blocks,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )


def batch(stream: Tensor, settings: Settings, step: int) -> Tensor:
    """Return the sequences of a step, which depend on the seed and the step only."""
    generator = np.random.default_rng([settings.seed, step])
    starts = generator.integers(len(stream) - settings.context, size=settings.batch_size)
    return torch.stack([stream[start : start + settings.context] for start in starts])


def perplexity(model: LlamaForCausalLM, stream: Tensor, context: int, sequences: int) -> float:
    """Compute the perplexity on sequences spread evenly over the stream."""
    starts = torch.linspace(0, len(stream) - context, sequences).long().tolist()
    chosen = [stream[start : start + context] for start in starts]
    return tb.perplexity(model, chosen, length=context, progress=False).value


def rate(settings: Settings) -> Callable[[int], float]:
    """Return the factor of the learning rate by step."""
    return lambda step: min(1, (step + 1) / settings.warmup, (1 - step / settings.steps) / settings.decay)


def optimizer_for(model: LlamaForCausalLM, settings: Settings) -> Optimizer:
    """Build AdamW, without decay for the norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, weight_decay=settings.weight_decay, fused=True)


def learn(
    model: LlamaForCausalLM, ids: Tensor, optimizers: Sequence[Optimizer], clip: float, *, bfloat16: bool = True
) -> float:
    """Take one step; return the loss before it. Mixed precision is slower than float32 on a CPU without bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def restore(path: Path, settings: Settings, parts: dict[str, Any]) -> tuple[int, list[Any]]:
    """Restore model, optimizer and scheduler; return the number of steps and the losses so far."""
    if not path.exists():
        return 0, []
    saved = torch.load(path, weights_only=True)
    if {**saved["settings"], "steps": settings.steps} != asdict(settings):
        raise SystemExit(f"{path} was written with other settings: remove it, or choose another --out")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["history"]


def train(model: LlamaForCausalLM, streams: dict[str, Tensor], out: Path, settings: Settings) -> list[Any]:
    """Train, from the checkpoint if there is one; return the losses."""
    optimizer = optimizer_for(model, settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate(settings))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint = out / "checkpoint.pt"
    first, history = restore(checkpoint, settings, parts)
    losses, began = list[float](), time.perf_counter()
    with progress_bar("training", total=settings.steps) as advance:
        advance(first)
        for step in range(first, settings.steps):
            ids = batch(streams["train"], settings, step)
            losses.append(learn(model, ids, [optimizer], settings.clip, bfloat16=settings.bfloat16))
            scheduler.step()
            advance(1)
            if (step + 1) % settings.every and step + 1 < settings.steps:
                continue
            held_out = math.log(perplexity(model, streams["held_out"], settings.context, 64))
            history.append({"step": step + 1, "train": float(np.mean(losses)), "held_out": held_out})
            print(f"{history[-1]}, {(time.perf_counter() - began) / len(losses):.2f} s a step", flush=True)
            losses, began = [], time.perf_counter()
            states = {name: part.state_dict() for name, part in parts.items()}
            file = io.BytesIO()
            torch.save({**states, "settings": asdict(settings), "step": step + 1, "history": history}, file)
            write_atomically(checkpoint, file.getvalue())
    return history


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description="Train a small LLaMA on real text.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the texts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--float32", action="store_true", help="without mixed precision")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = Settings(steps=given.steps, seed=given.seed, bfloat16=not given.float32)
    given.out.mkdir(parents=True, exist_ok=True)
    streams = prepare(given.data, given.out, settings)
    print({name: f"{len(stream):,} tokens" for name, stream in streams.items()}, flush=True)
    model = build(settings)
    history = train(model, streams, given.out, settings)
    model.save_pretrained(given.out)
    packages = {"torch": torch, "transformers": transformers, "tokenizers": tokenizers, "numpy": np}
    written = {
        "settings": asdict(settings),
        "versions": {"python": platform.python_version()} | {k: v.__version__ for k, v in packages.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": {name: len(stream) for name, stream in streams.items()},
        "held_out_perplexity": perplexity(model, streams["held_out"], settings.context, 256),
        "history": history,
    }
    write_atomically(given.out / "training.json", json.dumps(written, indent=1).encode() + b"\n")
    print(f"held-out perplexity {written['held_out_perplexity']:.2f}")
    os.unlink(given.out / "checkpoint.pt")


if __name__ == "__main__":
    main()
