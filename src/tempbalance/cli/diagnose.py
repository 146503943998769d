"""``tempbalance analyze`` and ``tempbalance compare``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from tempbalance.analysis.analyzer import analyze
from tempbalance.analysis.comparison import compare
from tempbalance.analysis.distributed import WorkQueue
from tempbalance.analysis.result import Analysis
from tempbalance.checkpoints import open_checkpoint
from tempbalance.cli.app import (
    ESTIMATORS,
    INTERRUPTED,
    DeviceOption,
    Estimator,
    EstimatorOption,
    FarmsOption,
    FarmsRowsOption,
    app,
    check_outputs,
    make_windows,
    say_saved,
)
from tempbalance.layers import Select
from tempbalance.report.terminal import print_analysis, print_comparison
from tempbalance.spectra.windows import FARMS

__all__ = ["analyze_command", "compare_command"]


class Lora(str, Enum):
    """What a LoRA layer stands for."""

    merged = "merged"
    update = "update"


@app.command("analyze")
def analyze_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a Hugging Face hub id.")],
    estimator: EstimatorOption = Estimator.hill,
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    select: Annotated[
        list[str] | None, typer.Option(help="Only weights whose name matches this glob. May be repeated.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Not these. May be repeated.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Analyse embeddings too.")] = False,
    split: Annotated[bool, typer.Option(help="Split fused weights (QKV, gate and up, LSTM gates).")] = True,
    lora: Annotated[
        Lora, typer.Option(help="Adapted weights with their update merged, or the update alone.")
    ] = Lora.merged,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    device: DeviceOption = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", "-o", help="Save to FILE.json, .csv, .parquet or .html. May be repeated."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first weight that cannot be analysed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no progress.")] = False,
) -> None:
    """Analyse every weight matrix of SOURCE and show the layers that stand out.

    [bold]Examples[/]

      tempbalance analyze path/to/model

      tempbalance analyze model.safetensors --estimator ks --out report.html --out layers.csv

      tempbalance analyze org/name --select '*.self_attn.*' --device cuda

      torchrun --nproc-per-node 4 -m tempbalance analyze path/to/model --out report.html

    An interrupted run with --out goes on where it stopped when the same command is given again. Processes that torchrun
    starts share the weights.
    """
    outputs = out or []
    partial = outputs[0].with_name(f"{outputs[0].name}.partial") if outputs else None
    chosen = Select(
        include=tuple(select or ("*",)),
        exclude=tuple(exclude or ()),
        embeddings=embeddings,
        split=split,
        lora=lora.value,
    )
    processes = WorkQueue.launched()
    try:
        if processes.rank == 0:
            check_outputs(outputs)
        if device == "cuda" and processes.size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())  # each its own
        analysis = analyze(
            source if revision is None else open_checkpoint(source, revision),
            estimator=ESTIMATORS[estimator],
            windows=make_windows(farms, farms_rows),
            select=chosen,
            device=device,
            progress=not quiet,
            strict=strict,
            resume=partial,
            processes=processes,
        )
    except KeyboardInterrupt:
        if processes.fail():
            hint = f"; {partial} holds the layers done: give the same command again to go on" if partial else ""
            typer.echo(f"interrupted{hint}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        if processes.fail():
            raise
        raise typer.Exit(1) from None  # another process has said what is wrong
    if processes.rank == 0:
        _show(analysis, outputs, quiet)


def _show(analysis: Analysis, outputs: list[Path], quiet: bool) -> None:
    for path in outputs:
        analysis.save(path)
    if not quiet:
        console = Console()
        print_analysis(console, analysis)
        say_saved(console, outputs)


@app.command("compare")
def compare_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    before: Annotated[str, typer.Argument(help="A saved analysis (.json), or anything that can be analysed.")],
    after: Annotated[str, typer.Argument(help="The same, after.")],
    estimator: EstimatorOption = Estimator.hill,
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    device: DeviceOption = None,
    out: Annotated[list[Path] | None, typer.Option("--out", "-o", help="Save to FILE.json or FILE.csv.")] = None,
) -> None:
    """Show how each layer's alpha changed, as before and after fine-tuning.

    [bold]Examples[/]

      tempbalance compare before.json after.json

      tempbalance compare path/to/base path/to/finetuned --out changes.csv
    """
    outputs = check_outputs(out or [], allowed=(".json", ".csv"))
    windows = make_windows(farms, farms_rows)
    first, second = (_analysis(source, estimator, windows, device) for source in (before, after))
    comparison = compare(first, second)
    for path in outputs:
        comparison.save(path)
    console = Console()
    print_comparison(console, comparison)
    say_saved(console, outputs)


def _analysis(source: str, estimator: Estimator, windows: FARMS | None, device: str | None) -> Analysis:
    if source.lower().endswith(".json"):
        return Analysis.load(source)
    return analyze(source, estimator=ESTIMATORS[estimator], windows=windows, device=device)
