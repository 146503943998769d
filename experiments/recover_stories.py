"""Recovery of a pruned language model, with one learning rate and balanced: paired seeds.

    python experiments/recover_stories.py FOLDER experiments/recover_stories.json

FOLDER contains stories260k, a LLaMA of 260 thousand parameters, and a thousand tokenised TinyStories. It is pruned by
Wanda to 50 %, the same in every layer, and recovered on stories 100 to 499. Each method uses the learning rate that
is best on stories 20 to 59 with another seed; the table is of stories 0 to 19. A seed chooses the calibration
sequences, the LoRA factors and the order of the data, the same for both methods. About eight minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.balance import Recipe
from tempbalance.compress import RecoverySettings, load_causal_lm, recover

LENGTH = 256
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED, SEEDS = 100, range(5)


def measure(model: nn.Module, stories: Sequence[Tensor]) -> float:
    """Perplexity on the beginnings of stories."""
    return float(tb.perplexity(model, [story[:LENGTH] for story in stories], progress=False))


def pruned(folder: Path, training: Sequence[Tensor], seed: int) -> nn.Module:
    """The model with half of its weights zero."""
    model = load_causal_lm(folder)
    allocation = tb.allocate_sparsity(tb.analyze(model, progress=False), sparsity=0.5, method="uniform")
    calibration = tb.compress.draw_calibration(training, 64, LENGTH, seed)
    tb.prune(model, allocation, "wanda", calibration=calibration, progress=False)
    return model


def main(folder: Path, out: Path) -> None:
    """Tune, run, write."""
    torch.set_num_threads(1)
    documents = tb.compress.load_tokens(folder / "tinystories_1000_tokens.npz")
    held_out, tuning, training = documents[:20], documents[20:60], documents[100:500]
    ways: dict[str, Recipe | None] = {"plain": None, "balanced": tb.recipes.model_balancing()}

    def recovered(way: str, lr: float, seed: int) -> nn.Module:
        """The pruned model after one epoch."""
        model = pruned(folder, training, seed)
        settings = RecoverySettings(lr=lr, batch=8, length=LENGTH, seed=seed)
        recover(model, training, settings, recipe=ways[way], progress=False)
        return model

    tuned = {way: {lr: measure(recovered(way, lr, TUNING_SEED), tuning) for lr in RATES} for way in ways}
    best = {way: min(found, key=found.__getitem__) for way, found in tuned.items()}
    results = {
        "dense": measure(load_causal_lm(folder), held_out),
        "tuning": tuned,
        "lr": best,
        "pruned": [measure(pruned(folder, training, seed), held_out) for seed in SEEDS],
        **{way: [measure(recovered(way, best[way], seed), held_out) for seed in SEEDS] for way in ways},
    }
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.folder, given.out)
