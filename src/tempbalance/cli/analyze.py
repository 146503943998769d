"""``tempbalance analyze``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    RevisionOption,
    SelectOption,
    app,
    check_outputs,
    make_estimator,
    make_windows,
    print_interrupted,
    print_result,
    split_outputs,
)
from tempbalance.cli.failures import FOUND, INTERRUPTED

if TYPE_CHECKING:
    from tempbalance.analysis.distributed import WorkQueue

__all__ = ["analyze_command"]


Lora = Enum("Lora", {"merged": "merged", "update": "update"}, type=str)
_ExcludeOption = Annotated[list[str] | None, typer.Option(help="Leave out weights that match this glob. Repeatable.")]
_LoraOption = Annotated[
    Lora, typer.Option(help="For LoRA layers: the weight with its update merged, or the update alone.")
]
_OutOption = Annotated[
    list[Path] | None,
    typer.Option("--out", "-o", help="Save to FILE.json, .csv, .parquet or .html; - prints JSON. Repeatable."),
]
_FailOnOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND,...",
        help="Exit with status 3 if there is a finding of this kind (nan, untrained, ...), of this severity or worse "
        "(error, warning, note), or any. Repeatable.",
    ),
]


@app.command("analyze")
def analyze_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[
        str, typer.Argument(help="File (.safetensors, .pt, .bin, .ckpt, .gguf), folder, or Hugging Face hub id.")
    ],
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    select: SelectOption = None,
    exclude: _ExcludeOption = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Analyse embeddings too.")] = False,
    split: Annotated[bool, typer.Option(help="Split fused weights (QKV, gate and up, LSTM gates).")] = True,
    lora: _LoraOption = Lora.merged,
    dtype: DtypeOption = None,
    cache: CacheOption = None,
    traps: Annotated[
        bool, typer.Option("--traps", help="Count correlation traps and compare the ERG threshold; twice the time.")
    ] = False,
    key: KeyOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    out: _OutOption = None,
    fail_on: _FailOnOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first weight that cannot be analysed.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Analyse every weight matrix of SOURCE, print the findings and a summary.

    [bold]Examples[/]

      tempbalance analyze path/to/model

      tempbalance analyze model.safetensors --estimator ks --out report.html --out layers.csv

      tempbalance analyze org/name --select '*.self_attn.*' --device cuda

      tempbalance analyze path/to/model --fail-on nan,untrained

      torchrun --nproc-per-node 4 -m tempbalance analyze path/to/model --out report.html

    With --out, an interrupted run can be resumed: run the same command again. Under torchrun each process analyses a
    part of the weights.
    """
    import torch

    from tempbalance.analysis import analyze
    from tempbalance.analysis.distributed import WorkQueue
    from tempbalance.analysis.resume import ResumeFile
    from tempbalance.checkpoints import open_checkpoint
    from tempbalance.layers import Select

    kinds = _parse_fail_on(fail_on or [])
    outputs, as_json = split_outputs(out, as_json)
    partial = Path(f"{outputs[0]}.partial") if outputs else None
    processes = WorkQueue.launched()
    with _failures_told(processes, partial), contextlib.ExitStack() as stack:
        resume = None
        if processes.rank == 0:
            check_outputs(outputs)
            resume = stack.enter_context(ResumeFile(partial)) if partial else None
        if device == "cuda" and processes.size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        analysis = analyze(
            source if revision is None else open_checkpoint(source, revision, key=key),
            estimator=make_estimator(estimator),
            windows=make_windows(farms, farms_rows),
            select=Select(
                include=tuple(select or ("*",)),
                exclude=tuple(exclude or ()),
                embeddings=embeddings,
                split=split,
                lora=lora.value,
            ),
            device=device,
            dtype=dtype,
            cache=cache,
            traps=traps,
            progress=not quiet and not as_json,
            strict=strict,
            key=key if revision is None else None,
            resume=resume,
            processes=processes,
        )
        for path in outputs if processes.rank == 0 else []:
            analysis.save(path)
    if processes.rank == 0:
        from tempbalance.report.analysis_report import print_analysis

        print_result(analysis, print_analysis, outputs, as_json=as_json, quiet=quiet)
    failed = [finding.kind for finding in analysis.findings if {"any", finding.kind, finding.severity.value} & kinds]
    if failed:
        if processes.rank == 0:
            typer.echo(f"error: findings of --fail-on: {', '.join(dict.fromkeys(failed))}", err=True)
        raise typer.Exit(FOUND)


def _parse_fail_on(values: Sequence[str]) -> set[str]:
    """Return the kinds and severities that ``--fail-on`` names; an unknown one is a usage error."""
    from tempbalance.analysis.findings import KINDS
    from tempbalance.types import Severity

    severities = [severity.value for severity in Severity]
    names = {name.strip() for value in values for name in value.split(",")}
    known = ("any", *severities, *KINDS)
    if unknown := sorted(names.difference(known)):
        raise typer.BadParameter(f"unknown finding {unknown[0]!r}: expected {', '.join(known)}", param_hint="--fail-on")
    worst = max((severities.index(name) for name in names.intersection(severities)), default=-1)
    return names | set(severities[: worst + 1])


@contextlib.contextmanager
def _failures_told(processes: WorkQueue, partial: Path | None) -> Generator[None]:
    """Make the other processes raise after a failure; the first one that fails prints the error."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if processes.report_failure(interrupt):
            print_interrupted("layers", partial)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if processes.report_failure(error):
            raise
        raise typer.Exit(1) from None  # another process prints the error
