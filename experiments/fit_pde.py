"""Why does balancing help an FNO on Darcy flow and not on Burgers? Training and test error of each method.

    python experiments/fit_pde.py

The trials of ``low_data_pde.py`` with 4 simulations and 250 steps, all at the learning rate 0.01 that ten tuning seeds
chose on both problems: the nRMSE on the training simulations and on the test data, 20 paired seeds, and the last
multipliers. About ten minutes on one core; writes ``fit_pde.json``.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

import torch
from low_data_pde import DATA, TRAINING, Simulations, load, nrmse, train
from torch import nn

import tempbalance as tb
from tempbalance.study import Method, paired

Problem: TypeAlias = Literal["darcy", "burgers"]
EXAMPLES, STEPS, LR, SEEDS = 4, 250, 1e-2, range(20, 40)
BALANCE = "model_balancing_sciml:normalize=true,every=25"
PROBLEMS: tuple[Problem, ...] = ("darcy", "burgers")
METHODS = ("plain", BALANCE, f"{BALANCE},kinds=('conv1d','linear')", f"{BALANCE},control=untrained")


class Kept(Method):
    """A method that stores the network."""

    model: nn.Module

    def balance(self, optimizer: Any, model: nn.Module, **options: Any) -> tb.Balancer | None:
        """Balance, and store the network."""
        self.model = model
        return super().balance(optimizer, model, **options)


def run(problem: Problem, name: str, seed: int) -> dict[str, Any]:
    """Train once; return training and test error, and the last multipliers by layer."""
    torch.manual_seed(seed)
    method = Kept(name, seed)
    test = train(seed, method, LR, problem=problem, examples=EXAMPLES, steps=STEPS)["test"]
    chosen = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(seed))[:EXAMPLES]  # as in train
    seen = Simulations(*(part[chosen] for part in load(str(DATA), problem)["train"]))
    multipliers = {unit.name: unit.multiplier for balancer in method.balancers for unit in balancer.units}
    return {"seed": seed, "fit": nrmse(method.model, seen), "test": test, "multipliers": multipliers}


def main() -> None:
    """Run, print, write."""
    results: list[dict[str, Any]] = []
    for problem in PROBLEMS:
        plain: dict[str, list[float]] = {}
        for name in METHODS:
            runs = [run(problem, name, seed) for seed in SEEDS]
            errors = {key: [each[key] for each in runs] for key in ("fit", "test")}
            plain = plain or errors
            row = {
                "problem": problem,
                "method": name,
                "means": {key: fmean(values) for key, values in errors.items()},
                "beyond plain": {key: paired(values, plain[key])._asdict() for key, values in errors.items()},
            }
            print(json.dumps(row), flush=True)
            results.append({**row, "runs": runs})
    settings = {"examples": EXAMPLES, "steps": STEPS, "lr": LR, "seeds": [*SEEDS]}
    written = {
        "command": "python experiments/fit_pde.py",
        "versions": {"tempbalance": version("tempbalance"), "torch": torch.__version__},
        "settings": settings,
        "results": results,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    main()
