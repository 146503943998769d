"""``tempbalance prune`` and ``tempbalance perplexity``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tempbalance._text import printable
from tempbalance.cli.app import (
    DeviceOption,
    EstimatorOption,
    FarmsOption,
    FarmsRowsOption,
    JsonOption,
    KeyOption,
    QuietOption,
    RevisionOption,
    app,
    check_outputs,
    make_estimator,
    make_windows,
    print_json,
    print_saved,
    refuse_unused,
)
from tempbalance.errors import AllocationError

if TYPE_CHECKING:
    from tempbalance.compress import Allocation, Calibration, PruningResult, SearchSettings

__all__ = [
    "FILES",
    "OF_SEARCH",
    "OF_SPARSITY",
    "AllocationOption",
    "BetaOption",
    "CalibrationOption",
    "CompareOption",
    "Criterion",
    "EpsilonOption",
    "EvaluateOption",
    "GenerationsOption",
    "GroupOption",
    "LengthOption",
    "RoutersOption",
    "SamplesOption",
    "SearchFolderOption",
    "SeedOption",
    "Unit",
    "make_calibration",
    "make_search",
    "of_calibration",
    "perplexity_command",
    "prune_command",
]

Criterion = Enum("Criterion", {"magnitude": "magnitude", "wanda": "wanda", "sparsegpt": "sparsegpt"}, type=str)
Unit = Enum("Unit", {"block": "block", "layer": "layer"}, type=str)
AllocationMethod = Enum(
    "AllocationMethod",
    {
        "alpha": "alpha",
        "uniform": "uniform",
        "erk": "erk",
        "depth": "depth",
        "owl": "owl",
        "atp": "atp",
        "best": "best",
        "search": "search",
    },
    type=str,
)
FILES = ".npz, .npy, .txt, .json, .jsonl, or a folder of these"
LengthOption = Annotated[
    int | None,
    typer.Option(min=2, max=2**24, help="Tokens in a sequence; default: the model's context length, at most 2048."),
]
EvaluateOption = Annotated[
    Path | None, typer.Option(help="Text or tokens to measure the perplexity on, before and after.")
]
AllocationOption = Annotated[
    AllocationMethod | None,
    typer.Option(
        help="Allocation of the sparsity over layers; default: with --calibration the best simple one on it (owl with "
        "--group or --no-compare, or uniform with --unit layer), without uniform.",
        show_default=False,
    ),
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Allowed spread around the mean sparsity, for alpha, depth and owl (0.3 = +-30 %); default: 0.3, for owl "
        "0.08.",
        show_default=False,
    ),
]
BetaOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Difference in sparsity between consecutive blocks, for atp; default: chosen on the calibration text.",
        show_default=False,
    ),
]
GenerationsOption = Annotated[
    int | None, typer.Option(min=1, max=2**20, help="Generations of a search; default: 100.", show_default=False)
]
SearchFolderOption = Annotated[
    Path | None, typer.Option(help="Folder for the state of a search; the same command resumes there after a stop.")
]
CompareOption = Annotated[
    bool,
    typer.Option(
        "--compare/--no-compare",
        help="Measure what each simple allocation gives on the calibration text, if it is used.",
    ),
]
GroupOption = Annotated[int | None, typer.Option(min=2, help="M of N:M sparsity; each block gets its own N.")]
RoutersOption = Annotated[bool, typer.Option("--routers", help="Prune routers of experts too.")]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(help=f"Calibration text or tokens for wanda, sparsegpt, owl, atp, best and search: {FILES}."),
]
SamplesOption = Annotated[int, typer.Option(min=1, max=2**20, help="Number of calibration sequences.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed for calibration samples and for a search.")]
_FromAllocationOption = Annotated[Path | None, typer.Option(help="Use this allocation.json, instead of --sparsity.")]
_ReportOption = Annotated[list[Path] | None, typer.Option(help="Save the result as FILE.html or .json. Repeatable.")]

OF_SEARCH = ("generations", "search_folder")
OF_SPARSITY = ("allocation", "epsilon", "beta", *OF_SEARCH, "compare", "group", "routers")
_OF_ANALYSIS = ("unit", "estimator", "farms", "farms_rows")


@app.command("prune")
def prune_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a Hugging Face hub id.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder; an earlier output is replaced.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", min=0, max=1, help="Fraction of zeros, in [0, 1).")
    ] = None,
    method: Annotated[Criterion, typer.Option("--method", "-m", help="Pruning criterion.")] = Criterion.magnitude,
    allocation: AllocationOption = None,
    epsilon: EpsilonOption = None,
    beta: BetaOption = None,
    generations: GenerationsOption = None,
    search_folder: SearchFolderOption = None,
    compare: CompareOption = True,
    unit: Annotated[
        Unit | None,
        typer.Option(
            help="Whether each block or each layer has one sparsity; default: block, for search layer.",
            show_default=False,
        ),
    ] = None,
    group: GroupOption = None,
    routers: RoutersOption = False,
    from_allocation: _FromAllocationOption = None,
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    length: LengthOption = None,
    seed: SeedOption = 0,
    evaluate: EvaluateOption = None,
    report: _ReportOption = None,
    key: KeyOption = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Prune even if less than 90 % of the weights in the blocks were analysed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the allocation; prune, evaluate and write nothing.")
    ] = False,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune a model and save it as a folder.

    The folder contains dense safetensors with zeros, the config and tokenizer files, and allocation.json.
    Magnitude streams any checkpoint; all that uses calibration text loads a causal language model.

    [bold]Examples[/]

      tempbalance prune path/to/model --sparsity 0.5 --out pruned

      tempbalance prune path/to/llama -s 0.7 -m wanda --calibration c4.jsonl --evaluate wikitext.txt --out pruned

      tempbalance prune path/to/llama -s 0.6 --allocation search --calibration c4.jsonl --out pruned

      tempbalance prune path/to/model -s 0.5 --allocation alpha --dry-run

      tempbalance prune path/to/model --from-allocation pruned/allocation.json --out again
    """
    if (sparsity is None) == (from_allocation is None):
        raise AllocationError("give either --sparsity S or --from-allocation FILE")
    if out is None and not dry_run:
        raise AllocationError("give --out FOLDER, or --dry-run to see the allocation only")
    refuse_unused(
        context,
        (from_allocation, "with --from-allocation", (*OF_SPARSITY, *_OF_ANALYSIS)),
        (calibration is None and evaluate is None, "without --calibration or --evaluate", ("length",)),
        *of_calibration(calibration, allocation, beta, group),
    )
    reports = check_outputs(report or [], (".json", ".html"))
    from tempbalance.compress import Allocation, SparsitySettings, allocate_folder, prune_folder

    settings: Allocation | SparsitySettings
    if sparsity is None:
        settings = Allocation.load(from_allocation or "")
    else:
        settings = SparsitySettings(
            sparsity=sparsity,
            method=allocation.value if allocation else None,
            epsilon=epsilon,
            beta=beta,
            unit=unit.value if unit else None,
            search=make_search(allocation == AllocationMethod.search, generations, search_folder, seed),
            compare=compare,
            group=group,
            routers=routers,
            estimator=make_estimator(estimator),
            windows=make_windows(farms, farms_rows),
        )
    text = make_calibration(calibration, samples, length, seed)
    if out is None or dry_run:
        _check_unquantised(source, revision, key)
        planned = allocate_folder(
            source,
            settings,
            method.value,
            calibration=text,
            revision=revision,
            key=key,
            device=device,
            progress=not quiet,
        )
        _print_plan(planned, as_json, partial)
        return
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
    _save_and_print(result, out, reports, as_json, quiet)


def make_calibration(tokens: Path | None, samples: int, length: int | None, seed: int) -> Calibration | None:
    """Return the calibration that the options select; None without a file."""
    from tempbalance.compress import Calibration

    return Calibration(tokens=tokens, samples=samples, length=length, seed=seed) if tokens else None


def of_calibration(
    calibration: Path | None, allocation: AllocationMethod | None, beta: float | None, group: int | None
) -> list[tuple[object, str, Sequence[str]]]:
    """Return the rules of ``refuse_unused`` for the options that belong to calibration text."""
    always = allocation in {AllocationMethod.search, AllocationMethod.best}
    measured = always or (allocation == AllocationMethod.atp and beta is None)
    return [
        (calibration is None, "without --calibration", ("samples", "seed", "compare")),
        (measured, "with --allocation search, best or atp, which measure the simple allocations", ("compare",)),
        (group is not None, "with --group", ("compare",)),
    ]


def make_search(wanted: bool, generations: int | None, folder: Path | None, seed: int) -> SearchSettings | None:
    """Return the search that the options select; None if there is neither a search nor an option of one."""
    from tempbalance.compress import SearchSettings

    if not wanted and generations is None and folder is None:
        return None
    given = {} if generations is None else {"generations": generations}
    return SearchSettings(seed=seed, folder=folder, **given)


def _check_unquantised(source: str, revision: str | None, key: str | None) -> None:
    """Raise the error of a run on a quantised model, which an allocation alone does not."""
    from tempbalance.checkpoints import open_checkpoint
    from tempbalance.compress.pruning.targets import check_unquantised

    with open_checkpoint(source, revision, key=key) as checkpoint:
        check_unquantised(checkpoint)


def _print_plan(allocation: Allocation, as_json: bool, partial: bool) -> None:
    """Print what a run without ``--dry-run`` would do, or raise its error."""
    from tempbalance.report.allocation_terminal import print_allocation
    from tempbalance.report.terminal import output_console

    if not partial:
        allocation.check_coverage()
    if as_json:
        print_json(allocation.to_dict())
    else:
        print_allocation(output_console(), allocation)
        typer.echo("dry run: nothing was pruned, evaluated or written")


def _save_and_print(result: PruningResult, out: Path, reports: list[Path], as_json: bool, quiet: bool) -> None:
    from tempbalance.report.pruning_report import print_perplexities, print_pruning, save_pruning_report
    from tempbalance.report.terminal import output_console

    for path in reports:
        save_pruning_report(result, path)
    console = output_console()
    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        print_pruning(console, result)
        print_saved(console, [out, *reports])
        if (out / "config.json").exists():
            searched = result.allocation.method.startswith("search")
            note = "; after that, uniform was no worse in 7 of 8 cells of our study" if searched else ""
            step = f"next: tempbalance recover {printable(str(out))} --tokens TEXT --out recovered{note}"
            console.print(step, style="dim", soft_wrap=True)
    elif result.perplexity is not None:
        print_perplexities(console, *result.perplexity)


@app.command("perplexity")
def perplexity_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[str, typer.Argument(help="Folder or hub id of a causal language model.")],
    tokens: Annotated[Path, typer.Argument(help=f"Text or tokens: {FILES}.")],
    length: LengthOption = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from one window to the next; default: no overlap.")
    ] = None,
    bits: Annotated[
        Path | None, typer.Option(help="Round the weights as in this allocation of bits (.json of allocate --bits).")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compute the perplexity of a causal language model on a text.

    The standard error is over windows of text.

    [bold]Examples[/]

      tempbalance perplexity path/to/llama wikitext.txt

      tempbalance perplexity path/to/llama tokens.npz --length 256 --stride 128

      tempbalance perplexity path/to/llama wikitext.txt --bits allocation.json
    """
    from tempbalance.compress import Allocation, perplexity

    rounded = Allocation.load(bits) if bits else None
    found = perplexity(source, tokens, stride, length=length, bits=rounded, device=device, progress=not quiet)
    if as_json:
        print_json(asdict(found))
    else:
        typer.echo(f"perplexity {found} over {found.tokens} tokens")
