"""Print the results of the demo as tables, and convert them to JSON."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tempbalance.demo.finetuning import ARMS, Outcome
from tempbalance.demo.language import CANDIDATES
from tempbalance.report.terminal import count, number, plain_table, plain_text, print_table
from tempbalance.study import FEWEST, Paired, Summary, paired

__all__ = ["print_language", "print_outcome", "to_json"]

_PAIRS = (("balanced", "plain"), ("balanced", "one_rate"), ("one_rate", "plain"))
_NAMES = {"plain": "plain", "balanced": "balanced", "one_rate": "one rate"}


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print all seeds, the means, the paired differences and the conclusion."""
    settings = outcome.settings
    steps = settings.epochs * -(-5 * settings.examples // settings.batch_size)
    mean_multiplier = fmean(result.mean_multiplier for result in outcome.results)
    lines = [
        f"A network pretrained on the digits 0 to 4 is fine-tuned on {settings.examples} images each of 5 to 9.",
        "plain     AdamW, without tempbalance",
        "balanced  the same with one more line:",
        "          tb.Balancer(optimizer, model, tb.recipes.model_balancing(), ...)",
        f"one rate  plain with the learning rate of all blocks multiplied by {mean_multiplier:.2f},",
        "          the mean multiplier of balanced (per seed)",
        f"{settings.blocks} blocks of width {settings.width}; AdamW: rate {settings.lr:g}, weight decay "
        f"{settings.weight_decay:g}, {settings.warmup:.0%} warm-up,",
        f"linear decay, {steps} steps of {settings.batch_size} images; nothing was tuned",
    ]
    console.print("\n".join(lines), highlight=False)
    print_table(console, _seeds_table(outcome))
    print_table(console, _differences_table(outcome))
    for sentence in _conclusions(outcome):
        console.print(sentence, highlight=False)


def print_language(console: Console, summary: Summary) -> None:
    """Print the study of the language model: its candidates by their names in the demo, and the recommendation."""
    lines = [
        "A language model of 0.12 million parameters learns the documentation of Python from scratch,",
        "byte by byte: AdamW, warm-up and cosine, 100 steps. Each candidate has the best of five learning",
        "rates (0.002 to 0.032, on other seeds). by_role multiplies the rate of all layers of a role:",
        "          tb.Balancer(optimizer, model, tb.recipes.by_role({'v': 0.25, 'o': 0.25}))",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)
    title = f"Loss in nats per byte on held-out text, {count(summary.seeds, 'seed', 'seeds')}; lower is better"
    table = plain_table("", "loss", "gain", "95 % interval", "won", "p", title=title)
    for name, row in zip(CANDIDATES, summary.rows, strict=True):
        own = [""] * 4
        if (gain := row.gain) is not None:
            interval, won = f"{gain.low:+.3f} to {gain.high:+.3f}", f"{gain.won} of {gain.seeds}"
            own = [f"{gain.mean:+.3f}", interval, won, f"{row.p_value:.2g}"]
        table.add_row(name, number(row.mean, ".3f"), *own)
    print_table(console, table)
    console.print(plain_text(summary.recommendation), soft_wrap=True)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the raw results as plain lists, strings and numbers; the tables can be computed from them."""
    return {
        "settings": asdict(outcome.settings),
        "versions": {"tempbalance": version("tempbalance"), "torch": torch.__version__},
        "data": "sklearn.datasets.load_digits",
        "test_images": outcome.test_images,
        "seeds": [result._asdict() for result in outcome.results],
        "differences": [
            {"first": first, "second": second, **found._asdict()} for (first, second), found in _differences(outcome)
        ],
        "history_of_first_seed": [asdict(refresh) for refresh in outcome.history],
    }


def _differences(outcome: Outcome) -> list[tuple[tuple[str, str], Paired]]:
    columns = {arm: [result.accuracy[arm] for result in outcome.results] for arm in ARMS}
    return [((first, second), paired(columns[first], columns[second])) for first, second in _PAIRS]


def _seeds_table(outcome: Outcome) -> Table:
    title = f"Accuracy in % on {outcome.test_images} test images"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    for heading in ("seed", *(_NAMES[arm] for arm in ARMS), "balanced - plain", "balanced - one rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [(str(result.seed), result.accuracy) for result in outcome.results]
    rows.append(("mean", {arm: fmean(result.accuracy[arm] for result in outcome.results) for arm in ARMS}))
    for name, accuracy in rows:
        table.add_row(
            name,
            *(f"{accuracy[arm]:.1f}" for arm in ARMS),
            f"{accuracy['balanced'] - accuracy['plain']:+.2f}",
            f"{accuracy['balanced'] - accuracy['one_rate']:+.2f}",
            style="bold" if name == "mean" else None,
        )
    return table


def _differences_table(outcome: Outcome) -> Table:
    columns = ("mean", "95 % interval", "won", "tied", "lost")
    table = plain_table("", *columns, title="Paired differences in percentage points")
    for (first, second), found in _differences(outcome):
        table.add_row(
            f"{_NAMES[first]} - {_NAMES[second]}",
            f"{found.mean:+.2f}",
            f"{found.low:+.2f} to {found.high:+.2f}",
            f"{found.won} of {found.seeds} ({found.share_won:.0%})",
            str(found.tied),
            str(found.lost),
        )
    return table


def _conclusions(outcome: Outcome) -> list[str]:
    if len(outcome.results) < FEWEST:
        return [f"{len(outcome.results)} seeds are too few for a conclusion: run {FEWEST} or more."]
    found = dict(_differences(outcome))
    return [
        f"Balancing was {_verdict(found['balanced', 'plain'])} plain fine-tuning.",
        f"Balancing was {_verdict(found['balanced', 'one_rate'])} one rate for all blocks.",
        "This is one small network on one easy data set: it shows how to compare methods,",
        "not whether balancing helps your model. Run tempbalance study on your own task.",
    ]


def _verdict(difference: Paired) -> str:
    if difference.low > 0:
        return "better than"
    if difference.high < 0:
        return "worse than"
    return "not significantly different from"
