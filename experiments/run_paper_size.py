"""Run an experiment at the size of its paper on one GPU: ``python experiments/run_paper_size.py resnet18``.

It checks the data, trains for at most ``--minutes``, saves the state and ends with status 75; the same command
resumes. ``--jobs`` trains seeds side by side. Finished studies are collected in ``experiments/results/NAME.json``, as
those of ``run_study.py``, and ``report_study.py diagnosis`` draws them in ``docs/results/index.md``. ``--collect``
trains nothing, and collects the seeds that all methods have finished. Until all is done:

    while python experiments/run_paper_size.py resnet18; [ $? -eq 75 ]; do :; done

``--rehearse`` runs all its code on a CPU in a minute, on a tiny model and tiny data, in pieces of a few steps, and
checks that a trial in pieces has exactly the numbers of one without pauses. It needs no data and writes no results.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from claims import Experiment, Study
from pieces import Pause, Piece
from run_study import DATA, HERE, INTERRUPTED, RESULTS, finish, missing, options
from studies.paper_size import PAPER_SIZE

import tempbalance as tb
from tempbalance._files import without_nan
from tempbalance.errors import BalanceWarning, StudyError, TempBalanceError
from tempbalance.study import Configuration

PAUSED = 75  # exit status; EX_TEMPFAIL of BSD: run it again
REHEARSED_STEPS = 3  # of a piece
STATES = "states"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run an experiment at the size of its paper on one GPU, in pieces.")
    parser.add_argument("experiment", choices=[*PAPER_SIZE])
    parser.add_argument("--only", metavar="STUDY", help="one of its studies")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of all data (see experiments/README.md)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the trials (default: runs)")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of a piece (default: 9)")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), metavar="N", default=1, help="trials side by side (default: 1)"
    )
    parser.add_argument("--device", default="cuda", help="where to train (default: cuda)")
    parser.add_argument("--collect", action="store_true", help="train nothing, collect finished trials")
    parser.add_argument("--rehearse", action="store_true", help="run all code on a CPU in a minute, without data")
    return parser.parse_args(argv)


def check(experiment: Experiment, studies: Sequence[Study], data: Path) -> None:
    """Raise a StudyError unless the data and packages of all studies are there."""
    for study in studies:
        if reason := missing(experiment, study, data):
            raise StudyError(f"{study.name}: {reason}")
        module_of(experiment).check(data / str(study.data), study.parameters)


def module_of(experiment: Experiment) -> Any:
    """The task file as a module, for its ``check``, ``write_tiny`` and ``REHEARSAL``."""
    return importlib.import_module(experiment.task.removesuffix(".py").replace("/", "."))


def run(experiment: Experiment, study: Study, given: argparse.Namespace, piece: Piece) -> dict[str, Any]:
    """Train until the study is finished, and return its results; or until the piece is over, and raise ``Pause``."""
    settings = options(experiment, study, given)
    paths = {**settings.pop("paths"), "piece": piece}
    out = given.out / experiment.name / study.name
    tb.study.run(out=out, paths=paths, progress=False, **settings)
    entry = tb.study.collect_folder(out)
    for trial in entry["runs"]:  # a trial knows the time of its last piece only
        trial["seconds"] = trial["metrics"].pop("seconds", None) or trial["seconds"]
    return entry


def rehearse(experiment: Experiment) -> None:
    """Run all code of an experiment on tiny data.

    Raises:
        StudyError: A trial failed, or differs from one without pauses.
    """
    module, study = module_of(experiment), experiment.full[0]  # the others differ in numbers only
    parameters = {**study.parameters, **module.REHEARSAL}
    methods = (study.methods[0], study.methods[-1])  # and plain; other controls have no code of their own
    small = replace(study, parameters=parameters, methods=methods, lr=study.lr[:2], seeds=1, tuning_seeds=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", BalanceWarning)  # tiny layers look random
        given = argparse.Namespace(data=Path(folder) / "data", out=Path(folder) / "runs", collect=False, jobs=1)
        assert study.data is not None
        (given.data / study.data).mkdir(parents=True)
        module.write_tiny(given.data / study.data)
        check(experiment, [small], given.data)
        entry, pieces = in_pieces(experiment, small, given)
        failed = [trial for trial in entry["runs"] if trial["status"] != "ok"]
        if failed:
            raise StudyError(f"{study.name}: {failed[0]['method']} {failed[0]['status']}: {failed[0]['error']}")
        compare(experiment, small, given, entry)
    print(f"{study.name}: {len(entry['runs'])} trials in {pieces} pieces, as without pauses")


def in_pieces(experiment: Experiment, study: Study, given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Run a study in pieces of a few steps; return its results and the number of pieces."""
    folder, pieces = given.out / STATES, 1
    while True:
        try:
            return run(experiment, study, given, Piece(folder=folder, most_steps=REHEARSED_STEPS)), pieces
        except Pause:
            pieces += 1


def compare(experiment: Experiment, study: Study, given: argparse.Namespace, entry: Mapping[str, Any]) -> None:
    """Train the claimed method without pauses, and raise a StudyError if a number differs."""
    data = str(given.data / str(study.data))
    task = tb.study.load_task(HERE / experiment.task, {**study.parameters, "data": data})
    name = experiment.claims[0].method
    (trial,) = (each for each in entry["runs"] if each["method"] == name and each["seed"] == study.first_seed)
    whole = task.run(Configuration(name, trial["lr"]), study.first_seed)
    found = without_nan({name: value for name, value in whole.metrics.items() if name != "seconds"})
    if found != trial["metrics"] or without_nan(whole.balance) != trial["balance"]:
        raise StudyError(
            f"{study.name}: {trial['metrics']}, {trial['balance']} in pieces, but {found}, {whole.balance}"
        )


def main(argv: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """Check, train, collect.

    Args:
        argv: The command line.
        results: The folder of results.

    Returns:
        0 if all studies have been run; 75 if the time is over; 1 after an error; 130 if interrupted.
    """
    given = arguments(argv)
    experiment = PAPER_SIZE[given.experiment]
    try:
        if given.rehearse:
            rehearse(experiment)
            return 0
        return train(experiment, given, results / f"{experiment.name}.json")
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return INTERRUPTED


def train(experiment: Experiment, given: argparse.Namespace, file: Path) -> int:
    """Train for a piece, and collect in a file."""
    studies = [study for study in experiment.full if given.only in (None, study.name)]
    if not studies:
        names = ", ".join(study.name for study in experiment.full)
        raise StudyError(f"{experiment.name} has no study {given.only}; it has {names}")
    if not given.minutes > 0:
        raise StudyError(f"--minutes must be positive, got {given.minutes}")
    if not given.collect and given.device.startswith("cuda") and not torch.cuda.is_available():
        raise StudyError("there is no CUDA device: --rehearse runs all code on a CPU; --device names another device")
    seconds = math.inf if given.collect else 60 * given.minutes
    piece = Piece(seconds=seconds, device=given.device)  # its time includes the check
    if not given.collect:
        check(experiment, studies, given.data)
    for study in studies:
        out = given.out / experiment.name / study.name
        piece.folder = out / STATES
        try:
            entry = run(experiment, study, given, piece)
        except Pause as pause:
            print(f"{study.name}: {pause}. Run the same command again to resume")
            return PAUSED
        finish(out, study, experiment.metric, entry, file)
        shutil.rmtree(piece.folder, ignore_errors=True)
    print(f"saved {file}; python experiments/report_study.py diagnosis shows it in docs/results/index.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
