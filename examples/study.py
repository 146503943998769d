"""Does a method help on this task? Paired seeds, a control, an interval, and a recommendation."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import tempbalance as tb

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16


# %% The task: your training, with one line for the method
def train(seed, method, lr=1e-3):
    train, validation, test = torch.randperm(len(x)).split([100, 500, 1197])  # the global generator is seeded
    hidden = [layer for _ in range(2) for layer in (nn.Linear(128, 128), nn.ReLU())]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), *hidden, nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    method.balance(optimizer, model, steps_per_epoch=1)
    for _ in range(40):
        nn.functional.cross_entropy(model(x[train]), y[train]).backward()
        optimizer.step()
        optimizer.zero_grad()
    right = model(x).argmax(dim=1) == y
    return {"validation": right[validation].float().mean(), "test": right[test].float().mean()}


# %% Ten seeds, each with and without the method, and with its mean rate for all layers
methods = ["model_balancing_sciml", "model_balancing_sciml:control=uniform"]
summary = tb.study.run(train, methods, "study", seeds=10)

# %% The answer
for row in summary.rows:
    gain = "" if row.gain is None else f"gain {row.gain.mean:+.4f} ({row.gain.low:+.4f} to {row.gain.high:+.4f})"
    print(f"{row.method:40} accuracy {row.mean:.4f}  {gain}")
print(summary.recommendation)
