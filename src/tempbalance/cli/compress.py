"""``tempbalance prune`` and ``tempbalance perplexity``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tempbalance.cli.app import (
    DeviceOption,
    EstimatorOption,
    FarmsOption,
    FarmsRowsOption,
    KeyOption,
    QuietOption,
    RevisionOption,
    app,
    check_outputs,
    make_estimator,
    make_windows,
    print_saved,
)
from tempbalance.errors import AllocationError

if TYPE_CHECKING:
    from tempbalance.compress import PruningResult

__all__ = ["EvaluateOption", "LengthOption", "perplexity_command", "prune_command"]

Criterion = Enum("Criterion", {"magnitude": "magnitude", "wanda": "wanda", "sparsegpt": "sparsegpt"}, type=str)
Unit = Enum("Unit", {"block": "block", "layer": "layer"}, type=str)
AllocationMethod = Enum(
    "AllocationMethod", {"alpha": "alpha", "uniform": "uniform", "erk": "erk", "depth": "depth", "owl": "owl"}, type=str
)
_LENGTH = 2048
_FILES = ".npz, .npy, .txt, .json, .jsonl"
LengthOption = Annotated[
    int | None,
    typer.Option(min=2, max=2**24, help="Tokens in a sequence; default: the model's context length, at most 2048."),
]
EvaluateOption = Annotated[
    Path | None, typer.Option(help="Text or tokens to measure the perplexity on, before and after.")
]
_AllocationOption = Annotated[AllocationMethod, typer.Option(help="Allocation of the sparsity over layers.")]
_EpsilonOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Allowed spread around the mean sparsity (0.3 = +-30 %); default: 0.3, for owl 0.08.",
        show_default=False,
    ),
]
_FromAllocationOption = Annotated[Path | None, typer.Option(help="Use this allocation.json, instead of --sparsity.")]
_CalibrationOption = Annotated[
    Path | None, typer.Option(help=f"Calibration text or tokens for wanda, sparsegpt and owl: {_FILES}.")
]
_ReportOption = Annotated[list[Path] | None, typer.Option(help="Save the result as FILE.html or .json. Repeatable.")]


@app.command("prune")
def prune_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a Hugging Face hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder; an earlier output is replaced.")],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", min=0, max=1, help="Fraction of zeros, in [0, 1).")
    ] = None,
    method: Annotated[Criterion, typer.Option("--method", "-m", help="Pruning criterion.")] = Criterion.magnitude,
    allocation: _AllocationOption = AllocationMethod.alpha,
    epsilon: _EpsilonOption = None,
    unit: Annotated[Unit, typer.Option(help="Whether each block or each layer has one sparsity.")] = Unit.block,
    group: Annotated[int | None, typer.Option(min=2, help="M of N:M sparsity; each block gets its own N.")] = None,
    routers: Annotated[bool, typer.Option("--routers", help="Prune routers of experts too.")] = False,
    from_allocation: _FromAllocationOption = None,
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    calibration: _CalibrationOption = None,
    samples: Annotated[int, typer.Option(min=1, max=2**20, help="Number of calibration sequences.")] = 128,
    length: LengthOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed for calibration samples.")] = 0,
    evaluate: EvaluateOption = None,
    report: _ReportOption = None,
    key: KeyOption = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Prune even if less than 90 % of the weights in the blocks were analysed.")
    ] = False,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Prune a model, less where layers are heavy-tailed, and save it as a folder.

    The folder contains dense safetensors with zeros, the config and tokenizer files, and allocation.json.
    Magnitude streams any checkpoint; wanda, sparsegpt and owl load a causal language model.

    [bold]Examples[/]

      tempbalance prune path/to/model --sparsity 0.5 --out pruned

      tempbalance prune path/to/llama -s 0.7 -m wanda --calibration c4.jsonl --evaluate wikitext.txt --out pruned

      tempbalance prune path/to/model -s 0.5 --out pruned --report pruned.html

      tempbalance prune path/to/model --from-allocation pruned/allocation.json --out again
    """
    if (sparsity is None) == (from_allocation is None):
        raise AllocationError("give either --sparsity S or --from-allocation FILE")
    reports = check_outputs(report or [], (".json", ".html"))
    from tempbalance.compress import Allocation, Calibration, SparsitySettings, prune_folder

    settings: Allocation | SparsitySettings
    if sparsity is None:
        settings = Allocation.load(from_allocation or "")
    else:
        settings = SparsitySettings(
            sparsity=sparsity,
            method=allocation.value,
            epsilon=epsilon,
            unit=unit.value,
            group=group,
            routers=routers,
            estimator=make_estimator(estimator),
            windows=make_windows(farms, farms_rows),
        )
    text = (
        Calibration(tokens=calibration, samples=samples, length=length or _LENGTH, seed=seed) if calibration else None
    )
    result = prune_folder(
        source,
        out,
        settings,
        method.value,
        calibration=text,
        evaluate=evaluate,
        length=length,
        revision=revision,
        key=key,
        partial=partial,
        device=device,
        progress=not quiet,
    )
    _save_and_print(result, out, reports, quiet)


def _save_and_print(result: PruningResult, out: Path, reports: list[Path], quiet: bool) -> None:
    from tempbalance.report.pruning_report import print_perplexities, print_pruning, save_pruning_report

    for path in reports:
        save_pruning_report(result, path)
    console = Console()
    if not quiet:
        print_pruning(console, result)
        print_saved(console, [out, *reports])
    elif result.perplexity is not None:
        print_perplexities(console, *result.perplexity)


@app.command("perplexity")
def perplexity_command(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a causal language model.")],
    tokens: Annotated[Path, typer.Argument(help=f"Text or tokens: {_FILES}.")],
    length: LengthOption = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from one window to the next; default: no overlap.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Compute the perplexity of a causal language model on a text.

    The standard error is over windows of text.

    [bold]Examples[/]

      tempbalance perplexity path/to/llama wikitext.txt

      tempbalance perplexity path/to/llama tokens.npz --length 256 --stride 128
    """
    from tempbalance.compress import perplexity

    found = perplexity(source, tokens, stride, length=length, device=device, progress=not quiet)
    Console().print(f"perplexity {found} over {found.tokens} tokens", highlight=False)
