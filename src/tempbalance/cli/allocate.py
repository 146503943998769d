"""``tempbalance allocate``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tempbalance._files import check_writable
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
    print_result,
    refuse_unused,
    split_outputs,
)
from tempbalance.cli.prune import (
    OF_SEARCH,
    OF_SPARSITY,
    AllocationOption,
    BetaOption,
    CalibrationOption,
    CompareOption,
    Criterion,
    EpsilonOption,
    GenerationsOption,
    GroupOption,
    LengthOption,
    RoutersOption,
    SamplesOption,
    SearchFolderOption,
    SeedOption,
    Unit,
    make_calibration,
    make_search,
    of_calibration,
)
from tempbalance.errors import AllocationError

if TYPE_CHECKING:
    from tempbalance.analysis import Analysis
    from tempbalance.checkpoints import Checkpoint
    from tempbalance.compress import Allocation, Calibration, SearchSettings

__all__ = ["allocate_command"]

_EXPORTERS = {
    "autoround": "export_autoround",
    "axolotl": "export_axolotl",
    "gptqmodel": "export_gptqmodel",
    "llama-quantize": "export_llama_quantize",
    "llm-compressor": "export_llmcompressor",
    "peft": "export_peft",
    "torchao": "export_torchao",
}
By = Enum(
    "By",
    {"alpha": "alpha", "error": "error", "uniform": "uniform", "search": "search", "snr": "snr", "drift": "drift"},
    type=str,
)


@app.command("allocate")
def allocate_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Saved analysis (.json), checkpoint file, folder, or hub id.")],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", min=0, max=1, help="Fraction of zeros, in [0, 1).")
    ] = None,
    bits: Annotated[float | None, typer.Option(min=1, max=64, help="Mean bits per weight.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=2**16, help="Uniform LoRA rank that is the budget.")] = None,
    trainable: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fraction of the layers of each type to train, in [0, 1].")
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(
            help="What decides. Bits: uniform (default; error with calibration text and formats), error, search (on "
            "calibration text) or alpha. Ranks: alpha (default), error or uniform. Trainable layers: snr (default, "
            "signal-to-noise ratio), alpha or drift.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(help="Number formats for --bits, such as int3_g128,nvfp4,bf16; default: 2, 3, 4, 8 bits."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model for --by drift.")] = None,
    allocation: AllocationOption = None,
    method: Annotated[
        Criterion | None,
        typer.Option(
            "--method",
            "-m",
            help="Pruning criterion that allocations are measured for; default: magnitude.",
            show_default=False,
        ),
    ] = None,
    epsilon: EpsilonOption = None,
    beta: BetaOption = None,
    generations: GenerationsOption = None,
    search_folder: SearchFolderOption = None,
    compare: CompareOption = True,
    unit: Annotated[
        Unit | None,
        typer.Option(
            help="What has one value: block (default for sparsity and ranks) or layer (for bits and a search).",
            show_default=False,
        ),
    ] = None,
    group: GroupOption = None,
    routers: RoutersOption = False,
    estimator: EstimatorOption = "hill",
    farms: FarmsOption = False,
    farms_rows: FarmsRowsOption = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = 128,
    length: LengthOption = None,
    seed: SeedOption = 0,
    out: Annotated[list[Path] | None, typer.Option("--out", "-o", help="Save to FILE.json; - prints JSON.")] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(help=f"Write the configuration of a tool, as TOOL=FILE: {', '.join(_EXPORTERS)}. Repeatable."),
    ] = None,
    key: KeyOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Allocate sparsity, bits, LoRA ranks or trainable layers over a model, without changing it.

    [bold]Examples[/]

      tempbalance allocate path/to/model --sparsity 0.5 --allocation alpha --out allocation.json

      tempbalance allocate path/to/llama -s 0.6 --allocation search -m wanda --calibration c4.jsonl -o x.json

      tempbalance allocate analysis.json --bits 3.5

      tempbalance allocate path/to/model --rank 8 --export peft=lora.json

      tempbalance allocate path/to/model --bits 5 --formats int4_g128,int8_g128 --by error --export gptqmodel=q.json

      tempbalance allocate path/to/llama --bits 5 --formats int4_g128,int8_g128 --by search --calibration c4.jsonl

      tempbalance allocate path/to/model --trainable 0.25 --export axolotl=unfrozen.yaml
    """
    budgets = {"sparsity": sparsity, "bits": bits, "rank": rank, "trainable": trainable}
    if sum(budget is not None for budget in budgets.values()) != 1:
        raise AllocationError("give one of --sparsity S, --bits B, --rank R and --trainable T")
    exports = [_parse_export(text) for text in export or []]
    outputs, as_json = split_outputs(out, as_json)
    check_outputs(outputs, allowed=(".json",))
    from tempbalance import compress
    from tempbalance.analysis import Analysis
    from tempbalance.checkpoints import open_checkpoint

    what, budget = next((name, value) for name, value in budgets.items() if value is not None)
    defaults = {"trainable": "snr", "bits": "error" if None not in (calibration, formats) else "uniform"}
    decides = by.value if by else defaults.get(what, "alpha")
    saved = source.lower().endswith(".json")
    rules = _rules(what, decides, saved, calibration)
    refuse_unused(context, *rules, *of_calibration(calibration, allocation, beta, group))
    fitted: dict[str, Any] = {"estimator": make_estimator(estimator), "windows": make_windows(farms, farms_rows)}
    analysis = Analysis.load(source) if saved else None
    text = make_calibration(calibration, samples, length, seed)
    search = make_search("search" in (allocation, decides), generations, search_folder, seed)
    if sparsity is not None:
        settings = compress.SparsitySettings(
            sparsity=sparsity,
            method=allocation.value if allocation else None,
            epsilon=epsilon,
            beta=beta,
            unit=unit.value if unit else None,
            search=search,
            compare=compare,
            group=group,
            routers=routers,
            **fitted,
        )
        found = compress.allocate_folder(
            analysis or source,
            settings,
            method.value if method else "magnitude",
            calibration=text,
            revision=revision,
            key=key,
            device=device,
            progress=not quiet,
        )
    else:
        with contextlib.ExitStack() as stack:
            model: Analysis | Checkpoint = analysis or stack.enter_context(open_checkpoint(source, revision, key=key))
            found = _allocate_by(
                what,
                budget or 0,
                model,
                by=decides,
                unit=unit.value if unit else None,
                formats=formats,
                base=base,
                calibration=text,
                search=search,
                analysis={**fitted, "device": device, "progress": not quiet},
            )
        found = replace(found, source=source if analysis is None else found.source)
    _save_and_print(found, outputs, exports, as_json, quiet)


def _rules(what: str, by: str, saved: bool, calibration: Path | None) -> list[tuple[object, str, Sequence[str]]]:
    """Return the rules of ``refuse_unused``; ``saved``: whether the source is an analysis."""
    other, case = what != "sparsity", f"with --{what} and --by {by}"
    return [
        (saved, "with a saved analysis", ("estimator", "farms", "farms_rows", "key", "revision", "device")),
        (not other, "with --sparsity (see --allocation)", ("by",)),
        (other, f"with --{what}", ("method", *(name for name in OF_SPARSITY if name not in OF_SEARCH))),
        (what != "bits", f"with --{what}", ("formats",)),
        (what == "trainable", f"with --{what}", ("unit",)),
        (by != "drift", f"with --{what} and without --by drift", ("base",)),
        (other and by != "search", case, OF_SEARCH),
        (other and (what != "bits" or by not in {"error", "search"}), case, ("calibration",)),
        (calibration is None, "without --calibration", ("method", "length")),
    ]


def _save_and_print(
    found: Allocation,
    outputs: Sequence[Path],
    exports: Sequence[tuple[str, Path, Mapping[str, str]]],
    as_json: bool,
    quiet: bool,
) -> None:
    from tempbalance import compress
    from tempbalance.report.allocation_terminal import print_allocation

    for path in outputs:
        found.save(path)
    for exporter, path, options in exports:
        getattr(compress, exporter)(found, path, **options)
    saved = [*outputs, *(path for _, path, _ in exports)]
    print_result(found, print_allocation, saved, as_json=as_json, quiet=quiet)


def _parse_export(text: str) -> tuple[str, Path, dict[str, str]]:
    """Return the exporter, the file and options of ``TOOL=FILE`` or ``llama-quantize:ARCHITECTURE=FILE``."""
    name, _, file = text.partition("=")
    tool, _, architecture = name.partition(":")
    if tool not in _EXPORTERS or not file or (architecture and tool != "llama-quantize"):
        raise AllocationError(
            f"--export must be TOOL=FILE, TOOL one of {', '.join(_EXPORTERS)} (llama-quantize:gpt2=FILE for another "
            f"architecture than llama), got {text!r}"
        )
    check_writable(file)
    return _EXPORTERS[tool], Path(file), {"architecture": architecture} if architecture else {}


def _allocate_by(  # noqa: PLR0913  each is an option of the command line
    what: str,
    budget: float,
    model: Analysis | Checkpoint,
    *,
    by: Any,
    unit: Any,
    formats: str | None,
    base: str | None,
    calibration: Calibration | None,
    search: SearchSettings | None,
    analysis: Mapping[str, Any],
) -> Allocation:
    """Allocate bits, ranks or trainable layers."""
    from tempbalance import compress
    from tempbalance.analysis import Analysis, analyze, compare
    from tempbalance.layers import Select
    from tempbalance.layers.select import EMBEDDING_OFF

    if by == "drift" and base is None:
        raise AllocationError("--by drift needs --base MODEL")
    if what == "bits" and by in {"error", "search"} and formats is None:
        raise AllocationError(f"--by {by} needs --formats, such as int3_g128,int4_g128,int8_g128")
    if (what, by) == ("bits", "search") and calibration is None:
        raise AllocationError("--by search needs --calibration FILE")

    def opened() -> Checkpoint:
        if isinstance(model, Analysis):
            raise AllocationError(f"--by {by} needs the model, not its analysis")
        return model

    progress, device = analysis["progress"], analysis["device"]
    source: Any = None
    text: Any = None
    scores, errors = None, None
    names = [name.strip() for name in formats.split(",")] if formats else []
    if what == "bits" and by in {"error", "search"}:
        source = opened().path if calibration else opened()
        text = calibration.for_model(source).draw(source) if calibration else None
    if (what, by) == ("bits", "error"):
        errors = compress.quantization_errors(source, names, calibration=text, device=device, progress=progress)
    elif (what, by) == ("trainable", "snr"):
        scores = compress.signal_to_noise(opened(), progress=progress)
    elif (what, by) == ("trainable", "drift"):
        scores = {row.name: row.relative_change for row in compare(base or "", opened(), progress=progress).layers}
    found = model if isinstance(model, Analysis) else None
    if found is None:
        found = analyze(opened(), select=Select(embeddings=what == "trainable"), **analysis)
    if (what, by) == ("bits", "search"):
        options: Any = {"unit": unit or "layer", "analysis": found, "device": device, "progress": progress}
        return compress.search_bits(source, budget, text, names, search, **options)
    if what == "rank":
        return compress.allocate_ranks(found, int(budget), method=by, unit=unit or "block")
    if what == "trainable":
        if frozen := [name for name, reason in found.skipped if reason == EMBEDDING_OFF]:
            logging.getLogger("tempbalance").warning(
                "%s, and a head that is tied to it, are frozen: the saved analysis has no embeddings, make it with "
                "analyze --embeddings",
                frozen[0],
            )
        return compress.allocate_trainable(found, budget, method=by, scores=scores)
    widths: Any = names or (2, 3, 4, 8)
    return compress.allocate_bits(found, budget, widths=widths, method=by, unit=unit or "layer", errors=errors)
