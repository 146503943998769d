"""Model Balancing at its size: RoBERTa-base on 0.02 to 1 % of SST-2, for one GPU.

AdamW (weight decay 0.1), linear decay with 6 % warm-up, 10 epochs in float32, texts of up to 128 tokens; all alphas
are measured at every refresh. The seed chooses the examples, the head, dropout and the order. The test is GLUE's
``dev.tsv`` after the last epoch, and ``best_epoch`` the best accuracy after an epoch, as the paper reports; learning
rates are chosen on other sentences of ``train.tsv``.

The data is a folder with ``roberta-base`` (a Hugging Face folder) and ``text/sst2``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from final_alpha import final_alpha
from low_data_text import read_file
from pieces import Piece, Record, generator
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn

from tempbalance.errors import StudyError
from tempbalance.study import Method
from tempbalance.study.runner import FIRST_TUNING_SEED

MODEL, SST2 = "roberta-base", "text/sst2"
LABELS = ("0", "1")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LONGEST = 128  # tokens
HELD_OUT = 1000  # sentences of the training file, in a trial for tuning
WARMUP = 0.06
EVALUATION_BATCH = 64
REHEARSAL = {"examples": 8, "epochs": 2, "batch_size": 4}


class Sentences:
    """Tokenised sentences with labels."""

    def __init__(self, rows: list[tuple[list[str], str]], tokenizer: Any) -> None:
        """Tokenise."""
        self.tokenizer = tokenizer
        self.ids = tokenizer([text for (text,), _ in rows], truncation=True, max_length=LONGEST)["input_ids"]
        self.labels = torch.tensor([LABELS.index(label) for _, label in rows])

    def batch(self, chosen: Tensor, device: str) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the model, padded, and labels."""
        inputs = self.tokenizer.pad({"input_ids": [self.ids[i] for i in chosen.tolist()]}, return_tensors="pt")
        return {name: part.to(device) for name, part in inputs.items()}, self.labels[chosen].to(device)


def check(data: Path, parameters: Mapping[str, Any]) -> None:
    """Raise a StudyError unless the folder has RoBERTa and SST-2."""
    folder = data / MODEL
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "roberta":
        raise StudyError(f"{folder} is a model of type {config.model_type}; expected roberta")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise StudyError(f"{folder} has no weights: {' or '.join(WEIGHTS)}")
    for part in ("train", "dev"):
        rows = read_file(data / SST2, part)
        if not all(len(texts) == 1 and label in LABELS for texts, label in rows):
            raise StudyError(f"{data / SST2 / part}.tsv is not SST-2: a sentence and the label 0 or 1 in each line")


def write_tiny(data: Path) -> None:
    """Write a tiny model and data set for the rehearsal."""
    (data / SST2).mkdir(parents=True)
    rng = random.Random(0)
    lines = [" ".join(rng.choices("abcdefgh", k=5)) + f"\t{place % 2}" for place in range(24)]
    for part in ("train", "dev"):
        (data / SST2 / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(lines, vocab_size=280, special_tokens=special, show_progress=False)
    (data / MODEL).mkdir()
    tokenizer.save_model(str(data / MODEL))
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LONGEST + 2,
    )
    transformers.RobertaModel(config).save_pretrained(data / MODEL)


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 2e-5,
    *,
    data: str,
    examples: int = 13,
    epochs: int = 10,
    batch_size: int = 4,
    piece: Piece | None = None,
) -> dict[str, float]:
    """Fine-tune once.

    Args:
        seed: Seed of everything random.
        method: How to balance.
        lr: Highest learning rate.
        data: Folder of model and data.
        examples: Sentences to train on.
        epochs: Passes over them.
        batch_size: Sentences in a batch; 4 and 8 in the paper at its smallest sizes, then 16 or 32.
        piece: Where to train, and for how long.

    Returns:
        Accuracies on test data after the last and the best epoch and, for a tuning seed, on validation data; alphas of
        the last weights; seconds of training.
    """
    piece = piece or Piece()
    folder = Path(data) / MODEL
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = read_file(Path(data) / SST2, "train")
    random.Random(seed).shuffle(rows)
    given, test = (Sentences(part, tokenizer) for part in (rows[:examples], read_file(Path(data) / SST2, "dev")))
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(LABELS), local_files_only=True
    ).to(piece.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    per_epoch = -(-examples // batch_size)
    method.balance(optimizer, model, steps_per_epoch=per_epoch, exact=True)
    total = epochs * per_epoch
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * total), total)

    accuracies = Record(last=math.nan, best=0.0)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "accuracies": accuracies}
    for step in piece.steps(f"{method.name} {lr} {seed}", total, state, method):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(examples, generator=generator(seed, epoch)).split(batch_size)
        inputs, labels = given.batch(order[place], piece.device)
        model.train()
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if place + 1 == per_epoch:
            accuracies["last"] = accuracy(model, test, piece.device)
            accuracies["best"] = max(accuracies["best"], accuracies["last"])
    found = {"test": accuracies["last"], "best_epoch": accuracies["best"]}
    if seed >= FIRST_TUNING_SEED:
        held_out = Sentences(rows[examples : examples + HELD_OUT], tokenizer)
        found["validation"] = accuracy(model, held_out, piece.device)
    return {**found, **final_alpha(model), "seconds": piece.spent}


@torch.inference_mode()
def accuracy(model: nn.Module, sentences: Sentences, device: str) -> float:
    """Compute the accuracy; NaN if the model has diverged."""
    model.eval()
    right, finite = 0, True
    for chosen in torch.arange(len(sentences.labels)).split(EVALUATION_BATCH):
        inputs, labels = sentences.batch(chosen, device)
        logits = model(**inputs).logits
        right += int((logits.argmax(dim=1) == labels).sum())
        finite = finite and bool(logits.isfinite().all())
    return right / len(sentences.labels) if finite else math.nan
