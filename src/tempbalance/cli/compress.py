"""``tempbalance prune`` and ``tempbalance perplexity``."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from tempbalance._files import dumps, write_whole
from tempbalance.analysis.analyzer import Source, analyze
from tempbalance.checkpoints import open_checkpoint
from tempbalance.checkpoints.writing import check_replaceable
from tempbalance.cli.app import (
    DeviceOption,
    EstimatorOption,
    FarmsOption,
    FarmsRowsOption,
    QuietOption,
    app,
    check_outputs,
    make_estimator,
    make_windows,
    say_saved,
)
from tempbalance.compress import (
    Allocation,
    Perplexity,
    allocate_sparsity,
    draw_calibration,
    load_causal_lm,
    load_tokens,
    outlier_ratios,
    perplexity,
    prune,
    prune_checkpoint,
    save_pruned,
)
from tempbalance.compress.pruning.pruned_folder import PLAN
from tempbalance.errors import AllocationError, TokensError
from tempbalance.report.pruning_page import Pruned, in_words, render_pruning
from tempbalance.report.pruning_terminal import print_perplexities, print_pruning

__all__ = ["LengthOption", "QuietOption", "perplexity_command", "prune_command", "transformers_bars"]


class Method(str, Enum):
    """Which weights go."""

    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"


class Share(str, Enum):
    """How the budget is shared out over layers."""

    alpha = "alpha"
    uniform = "uniform"
    erk = "erk"
    depth = "depth"
    owl = "owl"


class Unit(str, Enum):
    """What shares one sparsity."""

    block = "block"
    layer = "layer"


_OWL_EPSILON, _EPSILON = 0.08, 0.3
_LENGTH = 2048
LengthOption = Annotated[
    int | None, typer.Option(min=2, help="Tokens in a window; by default what the model was made for, up to 2048.")
]


@app.command("prune")
def prune_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[str, typer.Argument(help="A checkpoint file, a folder, or a Hugging Face hub id.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pruned model; an earlier output is replaced.")
    ],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Share of zeros, from 0 to below 1.")
    ] = None,
    method: Annotated[Method, typer.Option("--method", "-m", help="Which weights go.")] = Method.magnitude,
    share: Annotated[Share, typer.Option(help="How the zeros are shared out over layers.")] = Share.alpha,
    epsilon: Annotated[
        float | None, typer.Option(help="How far layers differ; by default 0.3, for owl 0.08.", show_default=False)
    ] = None,
    unit: Annotated[Unit, typer.Option(help="What shares one sparsity.")] = Unit.block,
    group: Annotated[int | None, typer.Option(help="M of N:M sparsity, with N by block.")] = None,
    plan: Annotated[Path | None, typer.Option(help="An allocation.json to prune by, instead of all that.")] = None,
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Tokens or text for wanda, sparsegpt and owl: .npz, .npy, .txt, .json, .jsonl.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences drawn for calibration.")] = 128,
    length: LengthOption = None,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    evaluate: Annotated[
        Path | None, typer.Option(help="Tokens or text to measure the perplexity on, before and after.")
    ] = None,
    report: Annotated[
        list[Path] | None, typer.Option(help="Save what was done to FILE.html or .json. May be repeated.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Prune SOURCE, the less the heavier the tails of its layers, and save it as a folder.

    The folder holds dense safetensors with zeros, what lay beside the weights, and the plan (allocation.json).
    Magnitude goes through the files tensor by tensor; wanda and sparsegpt load a causal language model.

    [bold]Examples[/]

      tempbalance prune path/to/model --sparsity 0.5 --out pruned

      tempbalance prune path/to/llama -s 0.7 -m wanda --calibration c4.jsonl --evaluate wikitext.txt --out pruned

      tempbalance prune path/to/model -s 0.5 --out pruned --report pruned.html

      tempbalance prune path/to/model --plan pruned/allocation.json --out again
    """
    if (sparsity is None) == (plan is None):
        raise AllocationError("say how sparse the model is to be: either --sparsity, or --plan FILE")
    given = Allocation.load(plan) if plan else None
    owl = given is None and share is Share.owl
    calibrated = owl or method is not Method.magnitude
    if calibrated and calibration is None:
        raise TokensError("wanda, sparsegpt and owl calibrate on tokens: give --calibration FILE")
    reports = check_outputs(report or [], (".json", ".html"))
    check_replaceable(out, PLAN)
    with open_checkpoint(source, revision) as checkpoint:
        folder = checkpoint.path
    drawing = {"samples": samples, "length": length or _LENGTH, "seed": seed} if calibrated else None
    drawn = draw_calibration(load_tokens(calibration, folder), **drawing) if calibration and drawing else None
    held_out = load_tokens(evaluate, folder) if evaluate else None
    progress = not quiet
    before = _measure(folder, held_out, length, device, progress) if held_out else None

    def allocate(model: Source, outliers: Mapping[str, float] | None = None) -> Allocation:
        """The plan, from a file or from the spectra of the model."""
        if given is not None:
            return given
        windows = make_windows(farms, farms_rows)
        found = analyze(model, estimator=make_estimator(estimator), windows=windows, device=device, progress=progress)
        return allocate_sparsity(
            replace(found, source=source),
            sparsity or 0.0,
            epsilon if epsilon is not None else _OWL_EPSILON if owl else _EPSILON,
            unit=unit.value,
            method=share.value,
            outliers=outliers,
            group=group,
        )

    if not calibrated and group is None and (given is None or given.group is None):
        allocation = allocate(folder)
        achieved = prune_checkpoint(folder, allocation, out, progress=progress)
    else:
        with transformers_bars(progress):
            model = load_causal_lm(folder, device)
            allocation = allocate(model, outlier_ratios(model, drawn or (), progress=progress) if owl else None)
            achieved = prune(model, allocation, method.value, calibration=drawn, progress=progress)
            save_pruned(model, allocation, out, folder)
            del model
    after = _measure(out, held_out, length, device, progress) if held_out else None
    pruned = Pruned(
        plan=allocation,
        method=method.value,
        achieved=achieved,
        calibration=drawing,
        perplexity=(before, after) if before and after else None,
    )
    _save_and_print(pruned, out, reports, quiet)


def _save_and_print(pruned: Pruned, out: Path, reports: Sequence[Path], quiet: bool) -> None:
    for path in reports:
        text = render_pruning(pruned) if path.suffix.lower() == ".html" else dumps(pruned.to_json())
        write_whole(path, text.encode())
    console = Console()
    if not quiet:
        print_pruning(console, pruned)
        say_saved(console, [out, *reports])
    elif pruned.perplexity is not None:
        print_perplexities(console, *pruned.perplexity)


@app.command("perplexity")
def perplexity_command(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a causal language model.")],
    tokens: Annotated[Path, typer.Argument(help="Tokens or text: .npz, .npy, .txt, .json, .jsonl.")],
    length: LengthOption = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from a window to the next; default: no overlap.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """How surprised the language model SOURCE is by a token of a text, on average.

    The standard error is over windows of text.

    [bold]Examples[/]

      tempbalance perplexity path/to/llama wikitext.txt

      tempbalance perplexity path/to/llama tokens.npz --length 256 --stride 128
    """
    found = _measure(source, load_tokens(tokens, source), length, device, not quiet, stride)
    Console().print(f"perplexity {in_words(found)} over {found.tokens} tokens", highlight=False)


def _measure(
    source: str | Path,
    documents: Sequence[Tensor],
    length: int | None,
    device: str | None,
    progress: bool,
    stride: int | None = None,
) -> Perplexity:
    with transformers_bars(progress):
        model = load_causal_lm(source, device)
    return perplexity(model, documents, stride, length=length, progress=progress)


@contextlib.contextmanager
def transformers_bars(wanted: bool) -> Generator[None]:
    """Let Transformers show its own bars only where ours are shown: it does so also when piped."""
    if (wanted and sys.stderr.isatty()) or importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
