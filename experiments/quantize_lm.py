"""Do uneven bits over the layers of a language model help? The perplexity of six allocations of equal size.

    python experiments/quantize_lm.py FOLDER experiments/quantize_lm.json

FOLDER contains stories260k, a LLaMA of 260 thousand parameters, and a thousand tokenised TinyStories. Its linear layers
are rounded to nearest, to 2, 3, 4, 5, 6 or 8 bits with a bfloat16 scale per row (its 172 columns fit no block), and
perplexity is measured on stories 0 to 39. Every allocation has the bits of uniform 3 or 4 bits, scales included:

- ``uniform``;
- ``error``: the least sum of squared errors; ``noise``: each weighted by the divergence that noise causes on stories
  100 and later, as in HIGGS; ``rounding``: of the divergence that rounding this layer alone causes there;
- ``alpha 1`` and ``alpha 10``: AlphaQ with gamma 1 and 10.

It prints the table of docs/results/quantization.md. Half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import tempbalance as tb
from tempbalance.compress import draw_calibration, load_causal_lm, load_tokens, quantization_errors
from tempbalance.study import paired

FORMATS = ("int2", "int3", "int4", "int5", "int6", "int8")
LENGTH, STORIES = 256, 40
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"method": "uniform"},
    "error": {"method": "error", "errors": "norm"},
    "noise": {"method": "error", "errors": "noise"},
    "rounding": {"method": "error", "errors": "rounding"},
    "alpha 1": {"method": "alpha", "gamma": 1.0},
    "alpha 10": {"method": "alpha", "gamma": 10.0},
}


def main(folder: Path, out: Path) -> None:
    """Allocate, round, measure, write."""
    torch.set_num_threads(1)
    documents = load_tokens(folder / "tinystories_1000_tokens.npz")
    stories, others = [story[:LENGTH] for story in documents[:STORIES]], documents[100:]
    model = load_causal_lm(folder).float()
    analysis = tb.analyze(model, progress=False)
    calibration = draw_calibration(others, samples=8, length=LENGTH, seed=0)
    text: dict[str, Any] = {"calibration": calibration, "progress": False}
    errors = {
        "norm": quantization_errors(model, FORMATS, progress=False),
        "noise": quantization_errors(model, FORMATS, measure="noise", **text),
        "rounding": quantization_errors(model, FORMATS, measure="rounding", **text),
    }

    def losses(allocation: tb.Allocation | None) -> list[float]:
        """Loss per token of each story."""
        found = (tb.perplexity(model, story, bits=allocation, progress=False) for story in stories)
        return [round(math.log(each.value), 5) for each in found]

    rows: list[dict[str, Any]] = [{"arm": "dense", "losses": losses(None)}]
    for bits in (3, 4):
        plain = tb.allocate_bits(analysis, 16, widths=[f"int{bits}"], method="uniform")
        budget = sum(plain[layer.name] * layer.numel for layer in plain.layers) / plain.covered
        for arm, options in ARMS.items():
            own = options | ({"errors": errors[options["errors"]]} if "errors" in options else {})
            allocation = tb.allocate_bits(analysis, budget, widths=FORMATS, **own)
            cost = sum(allocation[layer.name] * layer.numel for layer in allocation.layers) / allocation.covered
            rows.append({"arm": arm, "bits": bits, "mean_bits": round(cost, 4), "losses": losses(allocation)})
            rows[-1]["formats"] = {layer.name: layer.format for layer in allocation.layers}
    for row in rows:
        row["perplexity"] = round(math.exp(fmean(row["losses"])), 3)
    out.write_text(json.dumps({"stories": STORIES, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Write Markdown: perplexity, and its change against the uniform allocation with a 95 % interval over stories."""
    lines = ["| allocation | 3 bits | 4 bits |", "|---|---|---|"]
    cells: dict[tuple[str, int], Mapping[str, Any]] = {(row["arm"], row["bits"]): row for row in rows[1:]}
    for arm in ARMS:
        texts = []
        for bits in (3, 4):
            row, uniform = cells[arm, bits], cells["uniform", bits]
            text = f"{row['perplexity']:.2f} ({row['mean_bits']:.3f} bits)"
            if arm != "uniform":
                gain = paired(uniform["losses"], row["losses"])
                low, mean, high = (100 * math.expm1(-each) for each in (gain.high, gain.mean, gain.low))
                text += f"<br>{mean:+.1f} % ({low:+.1f} to {high:+.1f})"
            texts.append(text.replace("-", "−"))
        lines.append(f"| {arm} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", f"dense: {rows[0]['perplexity']:.2f}"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    main(given.folder, given.out)
