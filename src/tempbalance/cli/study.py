"""``tempbalance arena``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from tempbalance._files import dumps, write_whole
from tempbalance.cli.app import INTERRUPTED, app, check_outputs, say_saved
from tempbalance.errors import StudyError
from tempbalance.report.study_page import render_summary
from tempbalance.report.study_terminal import print_summary
from tempbalance.study.candidates import read_candidates
from tempbalance.study.methods import PLAIN
from tempbalance.study.run_folder import common_settings, open_folder
from tempbalance.study.runner import run_contest
from tempbalance.study.summary import summarize
from tempbalance.study.task import load_task

__all__ = ["ManyValues", "arena"]

_QUICK = 2  # seeds


class ManyValues(TyperCommand):
    """``--methods a b`` for ``--methods a --methods b``: click knows options of a fixed number of values only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of an option that may be repeated before each of its values."""
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spelled: list[str] = []
        option, values = "", 0
        for arg in args:
            if arg.startswith("--"):
                option, values = arg, 0
            elif option in repeatable:
                values += 1
                spelled += [option] if values > 1 else []
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


@app.command(cls=ManyValues)
def arena(  # noqa: PLR0913, PLR0917  each is an option of the command line
    task: Annotated[Path, typer.Option(help="Python file with a function train(seed, method, ...).")],
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")],
    methods: Annotated[list[str], typer.Option(help="Names of methods; [bold]plain[/] is always among them.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many times to compare.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first; beyond those seen, to confirm a result.")] = 0,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rates that each method may choose from.")] = None,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Seeds to choose on, where there is a choice.")] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE: more arguments for the function.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="The method that the others are compared with.")] = PLAIN,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="As with a loss.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds, nothing tuned: does the task run?")] = False,
) -> None:
    """Compare methods on your own training function, seed by seed.

    [bold]Examples[/]

      tempbalance arena --task my_task.py --methods model_balancing --out arena

      tempbalance arena --task my_task.py --methods llr alphadecay --seeds 20 --lr 1e-4 3e-4 --out arena

    A run that is done is not made again:
    the same command goes on where it was interrupted.
    """
    loaded = load_task(task, _parameters(settings or []))
    candidates = read_candidates(methods, lr or [], baseline, loaded.makers)
    if quick:
        seeds = _QUICK
        candidates = [replace(candidate, trials=candidate.trials[:1]) for candidate in candidates]
    extent = {
        "methods": [each.name for each in candidates],
        "lr": lr,
        "seeds": seeds,
        "first_seed": first_seed,
        "tuning_seeds": tuning_seeds,
    }
    console = Console()
    with open_folder(out, common_settings(loaded, lower_is_better), extent) as folder:
        table, report = check_outputs([out / "summary.json", out / "report.html"])
        try:
            results = run_contest(
                loaded,
                candidates,
                folder,
                seeds=range(first_seed, first_seed + seeds),
                tuning_seeds=tuning_seeds,
                lower_is_better=lower_is_better,
            )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; {out} holds the runs done: give the same command again to go on", err=True)
            raise typer.Exit(INTERRUPTED) from None
        summary = summarize(results, lower_is_better=lower_is_better)
        write_whole(table, (dumps(summary.to_json()) + "\n").encode())
        page = render_summary(summary, loaded.name, {**common_settings(loaded, lower_is_better), **extent})
        write_whole(report, page.encode())
    print_summary(console, summary)
    say_saved(console, [table, report])


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE``, where a value that is no Python number, tuple, ... is text."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier() or name in ("seed", "method", "lr"):
            raise StudyError(f"--set takes NAME=VALUE, for any argument but seed, method and lr; got {setting!r}")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found
