"""The application, and the options and helpers that its commands share."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from tempbalance._files import check_writable, dumps
from tempbalance._text import printable
from tempbalance.cli.failures import INTERRUPTED
from tempbalance.errors import AllocationError, AnalysisError, MissingExtraError, StudyError

if TYPE_CHECKING:
    from tempbalance.spectra import FARMS
    from tempbalance.tail import TailEstimator

__all__ = [
    "DeviceOption",
    "EstimatorOption",
    "FarmsOption",
    "FarmsRowsOption",
    "JobsOption",
    "JsonOption",
    "KeyOption",
    "ManyValues",
    "QuietOption",
    "ReportsOption",
    "RevisionOption",
    "SelectOption",
    "SetOption",
    "app",
    "check_outputs",
    "make_estimator",
    "make_windows",
    "print_interrupted",
    "print_json",
    "print_result",
    "print_saved",
    "read_settings",
    "refuse_unused",
    "split_outputs",
    "training_in",
]

_WORDS = {"true": True, "false": False, "none": None}
_ORDER = ("analyze", "compare", "track", "study", "search", "allocate", "prune", "recover", "perplexity", "demo")


@contextlib.contextmanager
def _printable_usage() -> Generator[None]:
    """Escape the arguments in an error of usage: they may be names of files, which the shell has listed."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(getattr(error, "message", None), str):
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


class _Commands(TyperGroup):
    """Lists the commands in the order of their use, and reports wrong arguments in printable characters."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _printable_usage():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _printable_usage():
            return super().invoke(ctx)


class ManyValues(TyperCommand):
    """``--methods a b`` for ``--methods a --methods b``: click's options have a fixed number of values."""

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


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")

EstimatorOption = Annotated[
    str,
    typer.Option(
        "--estimator",
        "-e",
        help="Tail estimator: hill, peak, ks, averaged-hill, hill-as-released, peak-as-released, ks-as-released, "
        "or package.module:Class.",
        show_default=True,
    ),
]
FarmsOption = Annotated[
    bool, typer.Option("--farms", help="Pool FARMS windows of one aspect ratio: comparable across layer shapes.")
]
FarmsRowsOption = Annotated[
    int | None,
    typer.Option(
        "--farms-rows", min=2, help="Short side of a FARMS window; default: half of the matrix's. Implies --farms."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="Torch device, for example [bold]cuda[/].")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32 for eigenvalues in float32, which is faster.", show_default="float64")
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Folder for rows: weights that were analysed before are not analysed again.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no table and no progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")]
SelectOption = Annotated[list[str] | None, typer.Option(help="Only weights whose name matches this glob. Repeatable.")]
ReportsOption = Annotated[
    list[Path] | None, typer.Option("--out", "-o", help="Save to FILE.json, .csv or .html; - prints JSON. Repeatable.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
KeyOption = Annotated[
    str | None, typer.Option(help="Key of the state dict in a training checkpoint (.pt), for example [bold]ema[/].")
]
JobsOption = Annotated[int, typer.Option(min=1, max=256, help="Trainings at a time, each in a process.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE: further arguments of the function.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tempbalance {version('tempbalance')}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Inspect, train and compress PyTorch models layer by layer."""


def make_estimator(name: str) -> TailEstimator:
    """Return the estimator that ``--estimator`` names; an unknown name is a usage error."""
    import tempbalance.released  # noqa: F401  registers its estimators
    from tempbalance.tail import find_estimator

    try:
        return find_estimator(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--estimator") from error


def make_windows(farms: bool, rows: int | None) -> FARMS | None:
    """Return the windows that ``--farms`` and ``--farms-rows`` select."""
    from tempbalance.spectra import FARMS

    return FARMS(rows=rows) if farms or rows is not None else None


def split_outputs(out: Sequence[Path] | None, as_json: bool) -> tuple[list[Path], bool]:
    """Return the files of ``--out``, and whether to print JSON, which ``--out -`` asks for as ``--json`` does."""
    paths = [path for path in out or () if str(path) != "-"]
    return paths, as_json or len(paths) < len(out or ())


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result as one line of JSON, with null for NaN."""
    typer.echo(dumps(result))


@contextlib.contextmanager
def training_in(folder: Path, as_json: bool) -> Generator[None]:
    """Say where the trials are if they are interrupted; with ``--json`` let what they print go to standard error."""
    with contextlib.ExitStack() as stack:
        if as_json:
            sys.stdout.flush()
            out, error = 1, 2  # also of processes that the trials start
            before = os.dup(out)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, out)
            os.dup2(error, out)
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            yield
        except KeyboardInterrupt:
            print_interrupted("trials", folder)
            raise typer.Exit(INTERRUPTED) from None


def check_outputs(paths: list[Path], allowed: tuple[str, ...] = (".json", ".csv", ".parquet", ".html")) -> list[Path]:
    """Raise before the work starts if one of the output files cannot be written."""
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in allowed:
            raise AnalysisError(f"cannot save to {path}: the suffix must be one of {', '.join(allowed)}")
        check_writable(path)
        if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise MissingExtraError("parquet needs pyarrow: pip install 'tempbalance[parquet]'")
    return paths


def refuse_unused(context: typer.Context, *rules: tuple[object, str, Sequence[str]]) -> None:
    """Raise an AllocationError if an option was given that has no effect.

    A rule is whether it applies, the case in which options have no effect, and the names of their parameters.
    """
    for applies, case, names in rules:
        for option in context.command.params if applies else ():
            source = context.get_parameter_source(option.name or "")
            if option.name in names and source is not None and source.name == "COMMANDLINE":
                spelled = option.opts[0] if context.params[option.name or ""] is not False else option.secondary_opts[0]
                raise AllocationError(f"{spelled} has no effect {case}: leave it out")


def print_result(
    result: Any, show: Callable[[Console, Any], None], saved: Sequence[Path], *, as_json: bool, quiet: bool = False
) -> None:
    """Print a result as JSON, or by a function of ``report`` and with the paths of the files that were written."""
    from tempbalance.report.terminal import output_console

    if as_json:
        print_json(result.to_dict())
    elif not quiet:
        console = output_console()
        show(console, result)
        print_saved(console, saved)


def print_saved(console: Console, paths: Sequence[Path]) -> None:
    """Print the paths of the files that were written."""
    for path in paths:
        console.print(f"saved {printable(str(path))}", highlight=False, markup=False, soft_wrap=True)


def print_interrupted(what: str, saved: Path | None) -> None:
    """Print that a command was interrupted, and how to resume if there is something saved."""
    kept = f"; finished {what} are in {printable(str(saved))}: run the same command again to resume"
    typer.echo(f"interrupted{kept if saved is not None and saved.exists() else ''}", err=True)


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` of ``--set``; a value that is neither a Python literal nor true, false or none is text."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier() or name in ("seed", "method", "lr"):
            raise StudyError(f"--set requires NAME=VALUE, for any argument but seed, method and lr; got {setting!r}")
        try:
            found[name] = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found
