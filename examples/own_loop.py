"""Layer-wise learning rates in your own loop, with TensorBoard: handwritten digits and a small network."""

import torch
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import tempbalance as tb
from tempbalance.integrations.loggers import TensorBoardLogger

# %% Data and model
torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
train, test = torch.randperm(len(x)).split([1000, 797])
blocks = [layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU())]
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), *blocks, nn.Linear(128, 10))

# %% One line after the optimizer
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
logger = TensorBoardLogger("runs")
balancer = tb.Balancer(optimizer, model, tb.recipes.tempbalance(), steps_per_epoch=20, on_refresh=[logger])
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)

# %% The loop is as before
for _ in range(10):
    for batch in train[torch.randperm(1000)].split(50):
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
logger.close()

# %% The answer
right = (model.eval()(x[test]).argmax(dim=1) == y[test]).float().mean()
print(f"accuracy on {len(test)} other images: {right:.3f}")
for unit in balancer.units:
    print(f"{unit.name:4} alpha {unit.alpha:.2f} +- {unit.stderr:.2f}   learning rate x {unit.multiplier:.2f}")
events = EventAccumulator("runs").Reload()
print(f"tensorboard --logdir runs shows {len(events.Tags()['scalars'])} curves")
