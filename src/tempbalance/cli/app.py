"""What the commands share: the application, options, and what is checked before the work."""

from __future__ import annotations

import importlib.util
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tempbalance.errors import AnalysisError, MissingExtraError
from tempbalance.spectra.windows import FARMS
from tempbalance.tail import KS, AveragedHill, Hill, HillAsReleased, KSAsReleased, Peak, PeakAsReleased, TailEstimator

__all__ = [
    "ESTIMATORS",
    "INTERRUPTED",
    "DeviceOption",
    "Estimator",
    "EstimatorOption",
    "FarmsOption",
    "FarmsRowsOption",
    "app",
    "check_outputs",
    "make_windows",
    "say_saved",
]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="How well is each layer of a model trained? Ask the spectrum of its weights.",
)


INTERRUPTED = 130  # exit status


class Estimator(str, Enum):
    """Names of the estimators on the command line."""

    hill = "hill"
    peak = "peak"
    ks = "ks"
    averaged_hill = "averaged-hill"
    hill_as_released = "hill-as-released"
    peak_as_released = "peak-as-released"
    ks_as_released = "ks-as-released"


ESTIMATORS: dict[Estimator, TailEstimator] = {
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


def make_windows(farms: bool, rows: int | None) -> FARMS | None:
    """The windows that two options ask for."""
    return FARMS(rows=rows) if farms or rows is not None else None


_NEEDS: dict[str, tuple[str, Literal["report", "parquet"]]] = {
    ".html": ("plotly", "report"),
    ".parquet": ("pyarrow", "parquet"),
}


def check_outputs(paths: list[Path], allowed: tuple[str, ...] = (".json", ".csv", ".parquet", ".html")) -> list[Path]:
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


def say_saved(console: Console, paths: list[Path]) -> None:
    """Name the files that were written."""
    for path in paths:
        console.print(f"saved {path}", highlight=False, markup=False, soft_wrap=True)
