"""``tempbalance compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from tempbalance.cli.app import (
    CacheOption,
    DeviceOption,
    DtypeOption,
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
    print_result,
    split_outputs,
)

__all__ = ["compare_command"]


def _rules(renames: list[str]) -> dict[str, str]:
    """Return the rules of ``--rename OLD=NEW``."""
    for rename in renames:
        if "=" not in rename:
            raise typer.BadParameter(f"{rename!r} has no '='", param_hint="--rename")
    return {old: new for old, _, new in (rename.partition("=") for rename in renames)}


@app.command("compare")
def compare_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    before: Annotated[str, typer.Argument(help="Checkpoint file, folder, hub id, or saved analysis (.json).")],
    after: Annotated[str, typer.Argument(help="The model to compare with it, in the same forms, or its adapter.")],
    rename: Annotated[
        list[str] | None,
        typer.Option(help="OLD=NEW: new beginning of names of BEFORE, or a pattern with *. Repeatable."),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option("--estimator", "-e", help="Tail estimator, as for analyze.", show_default="hill")
    ] = None,
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    select: SelectOption = None,
    split: Annotated[bool, typer.Option(help="Split fused weights (QKV, gate and up, LSTM gates).")] = True,
    key: KeyOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    cache: CacheOption = None,
    out: ReportsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two models layer by layer: how far the weights moved, and whether alpha did.

    [bold]Examples[/]

      tempbalance compare path/to/base path/to/finetuned --out report.html

      tempbalance compare path/to/base path/to/adapter

      tempbalance compare base.pt tuned.pt --rename backbone.=model.encoder.

      tempbalance compare before.json after.json

    Layers are matched by name, also if one model has a prefix (bert.) that the other has not. A PEFT adapter as AFTER
    is merged with BEFORE. Saved analyses have no weights: only alpha is compared.
    """
    from tempbalance.analysis import compare
    from tempbalance.layers import Select
    from tempbalance.report.comparison_report import print_comparison

    outputs, as_json = split_outputs(out, as_json)
    check_outputs(outputs, allowed=(".json", ".csv", ".html"))
    comparison = compare(
        before,
        after,
        estimator=None if estimator is None else make_estimator(estimator),
        windows=make_windows(farms, farms_rows),
        select=Select(include=tuple(select or ("*",)), split=split) if select or not split else None,
        device=device,
        dtype=dtype,
        cache=cache,
        progress=not quiet,
        key=key,
        rename=_rules(rename or []),
    )
    for path in outputs:
        comparison.save(path)
    print_result(comparison, print_comparison, outputs, as_json=as_json, quiet=quiet)
