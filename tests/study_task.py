"""A task of milliseconds for `tempbalance.study`, whose metric depends mostly on the seed, the same for all methods."""

TASK = """
import math
import random
import torch

def train(
    seed, method, lr=0.1, gain=0.0, diverges=(), raises=(), forgets=False, returns=None, interrupted_at=None, log=None,
    examples=1, data=None,
):
    if seed == interrupted_at and method.name != "plain":
        raise KeyboardInterrupt
    if log:
        with open(log, "a") as file:
            file.write(f"{method.name} {seed}\\n")
    if seed in raises:
        raise RuntimeError(f"seed {seed} fails")
    model = torch.nn.Sequential(*(torch.nn.Linear(60, 60) for _ in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    balancer = None if forgets else method.balance(optimizer, model, steps_per_epoch=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    score = random.random() + torch.rand(()) - abs(lr - 0.3) + (0.01 * random.random() + gain) * bool(balancer)
    if returns is not None:
        return returns
    return {"validation": score, "test": math.nan if seed in diverges and (balancer or lr > 1) else score}
"""
