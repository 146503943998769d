"""``tempbalance study``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from tempbalance.cli.app import (
    JobsOption,
    JsonOption,
    ManyValues,
    SetOption,
    app,
    print_result,
    read_settings,
    training_in,
)
from tempbalance.errors import StudyError

__all__ = ["study"]


def _print_methods(wanted: bool) -> None:
    if not wanted:
        return
    from tempbalance.study import describe_methods

    methods = describe_methods()
    width = max(len(name) for name, _, _ in methods)
    for name, line, source in methods:
        typer.echo(f"{name:{width}}  {line}{f' [{source}]' if source else ''}")
    raise typer.Exit


@app.command(cls=ManyValues)
def study(  # noqa: PLR0913, PLR0917  each is an option of the command line
    task: Annotated[Path, typer.Option(help="Python file with a function train(seed, method, ...).")],
    out: Annotated[Path, typer.Option(help="Folder for the trials and the report.")],
    methods: Annotated[list[str], typer.Option(help="Names of methods; [bold]plain[/] is always included.")],
    seeds: Annotated[int, typer.Option(min=1, max=2**16, help="Number of seeds.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed; new seeds confirm a result.")] = 0,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rates that each method chooses from.")] = None,
    tuning_seeds: Annotated[int, typer.Option(min=1, max=2**16, help="Number of separate seeds for tuning.")] = 3,
    settings: SetOption = None,
    baseline: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "plain",
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Lower is better.")] = False,
    jobs: JobsOption = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds, no tuning, to test the task.")] = False,
    as_json: JsonOption = False,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=_print_methods, is_eager=True, help="List the methods with their sources."),
    ] = False,
) -> None:
    """Compare training methods on your own training function, seed by seed.

    [bold]Examples[/]

      tempbalance study --task my_task.py --methods model_balancing --out study

      tempbalance study --task my_task.py --methods llr alphadecay --seeds 20 --lr 1e-4 3e-4 --out study

    Finished trials are reused: run the same command again to resume.

    [bold]What our own studies found[/], against a tuned learning rate (small networks, docs/results/index.md):

      by_role, blockwise_lr    language model: 0.21 and 0.15 nats less loss; text: no gain by_role

      model_balancing          fine-tuning: no gain on digits and on four sets of text

      model_balancing_sciml    Darcy: 2.7 % less error (normalize=true), due to layer shapes; Burgers: 8 % more

      tempbalance              vision: no gain; language model: a gain, due to layer shapes

      alphadecay, mup          language model: worse

      llr                      not tested

      layerwise_decay          fine-tuning: no significant gain on digits and text

      snr, boosting            fine-tuning: better on digits

      spectrum, muon           fine-tuning: better on QNLI, worse on ChemProt

    All results: docs/results/what-helps.md. All names: tempbalance study --list.
    """
    from tempbalance._files import write_atomically
    from tempbalance.report.study_report import print_study, render_study
    from tempbalance.study import run

    with training_in(out, as_json):
        summary = run(
            task,
            methods,
            out,
            seeds=seeds,
            first_seed=first_seed,
            lr=lr or (),
            tuning_seeds=tuning_seeds,
            baseline=baseline,
            lower_is_better=lower_is_better,
            parameters=read_settings(settings or []),
            quick=quick,
            jobs=jobs,
        )
    write_atomically(out / "report.html", render_study(summary).encode())
    print_result(summary, print_study, [out / "summary.json", out / "report.html"], as_json=as_json)
    if all(math.isnan(row.mean) for row in summary.rows):
        raise StudyError(f"all trials failed or diverged: see their metrics and tracebacks in {out / 'runs'}")
