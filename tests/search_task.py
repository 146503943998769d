"""A task of milliseconds for `tempbalance search`: its metrics are a function of the learning rates of its model."""

TASK = """
import math
import torch
from torch import nn

IDEAL = {"v_proj": 0.002, "o_proj": 0.002, "norm": 0.03}  # rates; 0.01 for all others


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(4, 4, bias=False))
        self.up_proj = nn.Linear(4, 8)
        self.down_proj = nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(4, 8)


def train(
    seed, method, lr, diverges_above=math.inf, diverges_after=math.inf, raises=False, noise=0.01, log=None,
    interrupted_at=None,
):
    model = Net()
    balancer = method.balance(torch.optim.Adam(model.parameters(), lr=lr), model)
    if log:
        with open(log, "a") as file:
            file.write(f"{method.name} {lr} {seed}\\n")
        with open(log) as file:
            if interrupted_at and len(file.readlines()) >= interrupted_at:
                raise KeyboardInterrupt
    if raises:
        raise RuntimeError("it fails")
    rates = {name: lr for name, _ in model.named_parameters()}
    if balancer:
        balancer.refresh()
        for unit in balancer.units:
            rates |= {name: lr * unit.multiplier for name in unit.parameters}
    if max(rates.values()) > diverges_above or seed > diverges_after:
        return {"validation": math.nan, "test": math.nan}
    ideal = {name: next((IDEAL[part] for part in IDEAL if part in name), 0.01) for name in rates}
    losses = [math.log(rates[name] / ideal[name]) ** 2 for name in rates]
    luck = torch.Generator().manual_seed(seed + int(1e6 * sum(rates.values())))
    loss = sum(losses) / len(losses) + noise * torch.rand((), generator=luck).item()
    return {"validation": loss, "test": loss}
"""
