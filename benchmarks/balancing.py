"""Measure the cost of balancing during training: refreshes, hooks and split groups, relative to the training time.

Run with ``python benchmarks/balancing.py [--quick] [--sst2 train.tsv]``. ``--sst2`` names a file of sentences and
labels (header ``sentence label``, tabs) to fine-tune MiniLM on. Writes ``balancing.json`` next to this file (not with
``--quick``).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from models import minilm_folder, resnet18
from run import machine
from torch import nn

import tempbalance as tb

HERE = Path(__file__).parent
_EPOCH = 128  # optimizer steps: 2,048 examples in batches of 16


def minilm() -> nn.Module:
    """Load the pretrained MiniLM with a new head of two classes."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)


def bert_base() -> nn.Module:
    """Build BERT-base, 110 M parameters, untrained."""
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=2))


def text_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of 16 sequences of 32 random tokens."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1000, 20000, (16, 32), generator=generator)
    return model(input_ids=ids, labels=torch.randint(2, (16,), generator=generator)).loss


def image_loss(model: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of 128 random images."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(128, 3, 32, 32, generator=generator)
    return nn.functional.cross_entropy(model(images), torch.randint(10, (128,), generator=generator))


Loss = Callable[[nn.Module, int], torch.Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], Loss, tb.Recipe, int]] = {
    "ResNet-18, CIFAR-10": (resnet18, image_loss, tb.recipes.tempbalance(), 391),
    "MiniLM, 2,048 examples": (minilm, text_loss, tb.recipes.model_balancing(), _EPOCH),
    "BERT-base, 16,384 examples": (bert_base, text_loss, tb.recipes.model_balancing(), 1024),
    "MiniLM, AlphaDecay": (minilm, text_loss, tb.recipes.alphadecay(), _EPOCH),
}


def hook_seconds(optimizer: torch.optim.Optimizer, recipe: tb.Recipe, model: nn.Module, steps: int) -> list[float]:
    """Return the seconds of the balancer's hooks per step without a refresh; parameters need gradients."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(time.perf_counter())

    # Hooks run in the order of registration: the balancer's run between two marks, before and after the step.
    handles = [optimizer.register_step_pre_hook(mark), optimizer.register_step_post_hook(mark)]
    balancer = tb.Balancer(optimizer, model, recipe, steps_per_epoch=10**6)
    handles += [optimizer.register_step_pre_hook(mark), optimizer.register_step_post_hook(mark)]
    for _ in range(steps + 1):
        optimizer.step()
    for handle in handles:
        handle.remove()
    balancer.remove()
    return [marks[i + 1] - marks[i] + marks[i + 3] - marks[i + 2] for i in range(4, len(marks), 4)]


def case(name: str, quick: bool) -> dict[str, Any]:
    """Measure one model, in units of a training step."""
    build, loss, recipe, epoch = CASES[name]
    torch.manual_seed(0)
    model = build().train()
    make: Any = torch.optim.SGD if "ResNet" in name else torch.optim.AdamW
    options = {"momentum": 0.9} if "ResNet" in name else {}
    steps, whole, split = [], [], []
    optimizer = make(model.parameters(), lr=1e-5, **options)
    for step in range(3 if quick else 8):
        began = time.perf_counter()
        loss(model, step).backward()
        middle = time.perf_counter()
        optimizer.step()
        whole.append(time.perf_counter() - middle)
        steps.append(time.perf_counter() - began)
        if step < 2:
            optimizer.zero_grad()
    hooks = hook_seconds(optimizer, recipe, model, 3 if quick else 20)
    parts: list[int] = []
    balancer = tb.Balancer(optimizer, model, recipe, steps_per_epoch=10**6, exact=True)
    handle = optimizer.register_step_pre_hook(lambda *_: parts.append(len(optimizer.param_groups)))
    for step in range(len(whole) + 1):
        began = time.perf_counter()
        optimizer.step()
        if step:  # the first one measures
            split.append(time.perf_counter() - began)
    handle.remove()
    refreshes = [balancer.refresh().seconds for _ in range(2 if quick else 5)]
    interval = recipe.every.interval(epoch)
    assert interval is not None
    return {
        "name": name,
        "recipe": recipe.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": parts[-1],
        "interval": interval,
        "refresh_in_steps": median(refreshes) / median(steps),
        "share_of_exact_refreshes": median(refreshes) / median(steps) / interval,
        "share_of_hooks": median(hooks) / median(steps),
        "share_of_split_groups": (median(split) - median(hooks) - median(whole)) / median(steps),
        "seconds": {"step": steps, "refresh": refreshes, "hooks": hooks, "whole": whole, "split": split},
    }


def fine_tuning(sst2: Path, epochs: int) -> dict[str, Any]:
    """Fine-tune MiniLM on 2,048 sentences with the recipe's cadence and tolerance."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    rows = [line.split("\t") for line in sst2.read_text(encoding="utf-8").splitlines()[1:]]
    random.Random(0).shuffle(rows)
    torch.manual_seed(0)
    model = minilm().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5, weight_decay=0.1)
    balancer = tb.Balancer(optimizer, model, tb.recipes.model_balancing(), steps_per_epoch=_EPOCH)
    total = epochs * _EPOCH
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, int(0.06 * total), total)
    began = time.perf_counter()
    for step in range(total):
        batch = [rows[(step % _EPOCH) * 16 + i] for i in range(16)]
        texts = tokenizer([text for text, _ in batch], return_tensors="pt", padding=True, truncation=True)
        model(**texts, labels=torch.tensor([int(label) for _, label in batch])).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    found = balancer.history
    kept = {unit.name: unit.alpha for unit in balancer.units}
    known = {name: fit.alpha for name, fit in balancer.state.fits.items() if fit.alpha > 0}  # NaN without a fit
    balancer.remove()
    exact = tb.analyze(model, progress=False)
    drift = max(abs(row.alpha - known[row.name]) for row in exact.layers if row.name in known)
    return {
        "largest_drift_of_alpha": drift,
        "alphas": kept,
        "name": f"MiniLM fine-tuned on SST-2, {epochs} epochs of 2,048 examples, recipe's own cadence and tolerance",
        "share_of_refreshes": sum(refresh.seconds for refresh in found) / seconds,
        "refreshes": len(found),
        "measured": [refresh.measured for refresh in found],
        "seconds_of_refreshes": [refresh.seconds for refresh in found],
        "weights": found[0].measured,
        "seconds": seconds,
        "imbalance": [refresh.imbalance for refresh in found],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; writes nothing")
    parser.add_argument("--sst2", type=Path, help="file of sentences and labels")
    options = parser.parse_args()
    rows = []
    for name in CASES:
        rows.append(case(name, options.quick))
        print({key: value for key, value in rows[-1].items() if key != "seconds"}, flush=True)
    results: dict[str, Any] = {"machine": machine(), "cases": rows}
    if options.sst2:
        results["fine_tuning"] = fine_tuning(options.sst2, 1 if options.quick else 3)
        print(results["fine_tuning"], flush=True)
    if not options.quick:
        (HERE / "balancing.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
