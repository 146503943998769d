"""``tempbalance allocate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
    split_outputs,
)
from tempbalance.cli.compress import (
    AllocationOption,
    CalibrationOption,
    EpsilonOption,
    GroupOption,
    LengthOption,
    RoutersOption,
    SamplesOption,
    SeedOption,
    Unit,
    make_calibration,
)
from tempbalance.errors import AllocationError

__all__ = ["allocate_command"]


@app.command("allocate")
def allocate_command(  # noqa: PLR0913, PLR0917  each is an option of the command line
    source: Annotated[str, typer.Argument(help="Saved analysis (.json), checkpoint file, folder, or hub id.")],
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", min=0, max=1, help="Fraction of zeros, in [0, 1).")
    ] = None,
    bits: Annotated[float | None, typer.Option(min=1, max=64, help="Mean bits per weight.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=2**16, help="Uniform LoRA rank that is the budget.")] = None,
    allocation: AllocationOption = None,
    epsilon: EpsilonOption = None,
    unit: Annotated[
        Unit | None,
        typer.Option(help="What has one value: block (default for sparsity and ranks) or layer.", show_default=False),
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
    key: KeyOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Allocate sparsity, bits or LoRA ranks over the layers of a model, without changing it.

    [bold]Examples[/]

      tempbalance allocate path/to/model --sparsity 0.5 --allocation alpha --out allocation.json

      tempbalance allocate analysis.json --bits 3.5

      tempbalance allocate path/to/model --rank 8 --json
    """
    if sum(budget is not None for budget in (sparsity, bits, rank)) != 1:
        raise AllocationError("give one of --sparsity S, --bits B and --rank R")
    outputs, as_json = split_outputs(out, as_json)
    check_outputs(outputs, allowed=(".json",))
    from tempbalance.analysis import Analysis, analyze
    from tempbalance.checkpoints import open_checkpoint
    from tempbalance.compress import SparsitySettings, allocate_bits, allocate_folder, allocate_ranks
    from tempbalance.report.allocation_terminal import print_allocation
    from tempbalance.report.terminal_tables import output_console

    fitted_by, windows = make_estimator(estimator), make_windows(farms, farms_rows)
    analysis = Analysis.load(source) if source.lower().endswith(".json") else None
    if sparsity is not None:
        settings = SparsitySettings(
            sparsity=sparsity,
            method=allocation.value if allocation else None,
            epsilon=epsilon,
            unit=(unit or Unit.block).value,
            group=group,
            routers=routers,
            estimator=fitted_by,
            windows=windows,
        )
        found = allocate_folder(
            analysis or source,
            settings,
            calibration=make_calibration(calibration, samples, length, seed),
            revision=revision,
            key=key,
            device=device,
            progress=not quiet,
        )
    else:
        if (allocation, epsilon, group, calibration) != (None,) * 4 or routers:
            raise AllocationError(
                "--allocation, --epsilon, --group, --calibration and --routers can be used with --sparsity only"
            )
        if analysis is None:
            with open_checkpoint(source, revision, key=key) as checkpoint:
                analysis = analyze(checkpoint, estimator=fitted_by, windows=windows, device=device, progress=not quiet)
            analysis = replace(analysis, source=source)
        if bits is not None:
            found = allocate_bits(analysis, bits, unit=(unit or Unit.layer).value)
        else:
            found = allocate_ranks(analysis, rank or 1, unit=(unit or Unit.block).value)
    for path in outputs:
        found.save(path)
    if as_json:
        print_json(found.to_dict())
    elif not quiet:
        console = output_console()
        print_allocation(console, found)
        print_saved(console, outputs)
