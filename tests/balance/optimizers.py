"""Optimizers and schedulers that the balancer is tested with."""

from __future__ import annotations

import lion_pytorch
import torch
import transformers
from torch.optim import lr_scheduler

STEPS = 40  # of a run in which every schedule changes its rate, and ends

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), foreach=False, capturable=False),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Adafactor of transformers": lambda p: transformers.optimization.Adafactor(
        p, lr=1e-3, relative_step=False, scale_parameter=False
    ),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01, t0=2),
    "Lion": lambda p: lion_pytorch.Lion(p, lr=1e-4, weight_decay=1e-2),
}
SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=3e-3, total_steps=STEPS + 1, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(o, STEPS - 10)],
        milestones=[10],
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, threshold=0.1),
}
