"""``tempbalance track``."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from tempbalance.cli.app import (
    CacheOption,
    DeviceOption,
    DtypeOption,
    EstimatorOption,
    FarmsOption,
    FarmsRowsOption,
    JsonOption,
    KeyOption,
    QuietOption,
    ReportsOption,
    SelectOption,
    app,
    check_outputs,
    make_estimator,
    make_windows,
    print_interrupted,
    print_result,
    split_outputs,
)
from tempbalance.cli.failures import INTERRUPTED

__all__ = ["track_command"]


@app.command("track")
def track_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="Folder with checkpoint-* or .ckpt files, checkpoints, or hub ids (id@revision)."),
    ],
    revision: Annotated[
        list[str] | None, typer.Option(help="Branch, tag or commit of the hub id. Repeatable: one checkpoint each.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of checkpoints that are PEFT adapters, to merge each with it.")
    ] = None,
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    select: SelectOption = None,
    key: KeyOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    cache: CacheOption = None,
    out: ReportsOption = None,
    as_json: JsonOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first checkpoint that cannot be read.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Track a training run: alpha, stable rank and drift of every layer over its checkpoints.

    [bold]Examples[/]

      tempbalance track path/to/run --out run.json --out run.html

      tempbalance track lightning_logs/version_0 --out run.html

      tempbalance track path/to/run --base path/to/base

      tempbalance track org/name --revision step1000 --revision step2000

    With --out, finished checkpoints are kept: run the same command again to resume, or, with FILE.json, when
    training has saved more.
    """
    from tempbalance.analysis import TrackResume, track
    from tempbalance.report.track_report import print_track

    outputs, as_json = split_outputs(out, as_json)
    check_outputs(outputs, allowed=(".json", ".csv", ".html"))
    if revision and len(checkpoints) > 1:
        raise typer.BadParameter("give one hub id, or each as id@revision", param_hint="--revision")
    sources = [f"{checkpoints[0]}@{name}" for name in revision] if revision else checkpoints
    partial = TrackResume(next((path for path in outputs if path.suffix == ".json"), outputs[0])) if outputs else None
    try:
        with partial or contextlib.nullcontext():
            tracked = track(
                sources,
                estimator=make_estimator(estimator),
                windows=make_windows(farms, farms_rows),
                select=select,
                base=base,
                device=device,
                dtype=dtype,
                cache=cache,
                progress=not quiet,
                strict=strict,
                key=key,
                resume=partial,
            )
            for path in outputs:
                tracked.save(path)
    except KeyboardInterrupt:
        print_interrupted("checkpoints", None if partial is None else partial.path)
        raise typer.Exit(INTERRUPTED) from None
    print_result(tracked, print_track, outputs, as_json=as_json, quiet=quiet)
