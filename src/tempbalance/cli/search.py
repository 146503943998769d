"""``tempbalance search``."""

from __future__ import annotations

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

__all__ = ["search"]


@app.command(cls=ManyValues)
def search(  # noqa: PLR0913, PLR0917  each is an option of the command line
    task: Annotated[Path, typer.Option(help="Python file with a function train(seed, method, lr, ...).")],
    out: Annotated[Path, typer.Option(help="Folder for the trials and the result.")],
    lr: Annotated[list[float], typer.Option(help="Base learning rates: the search is between smallest and largest.")],
    units: Annotated[
        list[str] | None,
        typer.Option(help="[bold]role[/], [bold]block[/] or [bold]layer[/]; or patterns: role:v '*.mlp.*'. \\[role]"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials.")] = 40,
    seeds: Annotated[int, typer.Option(min=1, max=2**16, help="Number of seeds of each trial.")] = 2,
    final_seeds: Annotated[
        int, typer.Option(min=1, max=2**16, help="Seeds of the best four trials before one is chosen.")
    ] = 8,
    bounds: Annotated[tuple[float, float], typer.Option(help="Smallest and largest multiplier.")] = (0.125, 8.0),
    sampler_seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of the sampler.")] = 0,
    confirm: Annotated[int, typer.Option(min=0, max=2**16, help="Seeds of the paired study; 0 leaves it out.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, max=2**31, help="First seed of the paired study.")] = 0,
    controls: Annotated[list[str] | None, typer.Option(help="Controls of the paired study. \\[uniform]")] = None,
    settings: SetOption = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Lower is better.")] = False,
    jobs: JobsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Search for a learning rate for each role, block or layer, by validation on your own training function.

    [bold]Examples[/]

      tempbalance search --task my_task.py --lr 1e-3 4e-3 --out found

      tempbalance search --task my_task.py --lr 1e-3 4e-3 --units role:v role:o "*.mlp.*" --trials 30 --out found

    The multipliers that were found are compared with plain in a paired study on fresh seeds; plain has the best of as
    many learning rates as the search has trials. --confirm 0 leaves the study out.

    Finished trials are reused: run the same command again to resume, or with more trials to continue.
    """
    from tempbalance._files import write_atomically
    from tempbalance.report.search_report import print_search, render_search
    from tempbalance.report.study_report import render_study
    from tempbalance.study import search as run_search

    with training_in(out, as_json):
        result = run_search(
            task,
            out,
            lr=lr,
            units=units or "role",
            trials=trials,
            seeds=seeds,
            final_seeds=final_seeds,
            bounds=bounds,
            sampler_seed=sampler_seed,
            confirm=confirm,
            first_seed=first_seed,
            controls=controls or ("uniform",),
            lower_is_better=lower_is_better,
            parameters=read_settings(settings or []),
            jobs=jobs,
        )
    write_atomically(out / "report.html", render_search(result).encode())
    if result.confirmation is not None:
        write_atomically(out / "confirmation" / "report.html", render_study(result.confirmation).encode())
    saved = [*result.files, out / "summary.json", out / "report.html"]
    print_result(result, print_search, saved, as_json=as_json)
