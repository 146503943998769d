"""Alpha, stable rank and drift of every layer over the checkpoints of a training run: handwritten digits."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

import tempbalance as tb

# %% Train a small network and save four checkpoints
torch.manual_seed(0)
x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x = x.float() / 16
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(301):
    if step % 100 == 0:
        folder = Path(f"checkpoints/checkpoint-{step}")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors")
    batch = torch.randint(len(x), (64,))
    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
    optimizer.zero_grad()

# %% Track them: `tempbalance track checkpoints` does the same
tracked = tb.track("checkpoints")
for checkpoint in tracked.checkpoints:
    row = next(row for row in checkpoint.layers if row.name == "2.weight")
    print(
        f"step {checkpoint.step:4}  2.weight: {row.status.value:6}  alpha {row.alpha:5.2f}  "
        f"stable rank {row.stable_rank:5.1f}  drift {row.drift:.2f}"
    )
for finding in tracked.findings:
    print(f"{finding.severity.value}: {finding.message}")

# %% Its figure: interactive in a notebook
tracked.plot()
