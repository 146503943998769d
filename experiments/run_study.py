"""Run the studies of an experiment: ``python experiments/run_study.py digits --quick``.

``--full`` runs all studies and collects them in ``experiments/results/NAME.json``, from which ``report_study.py`` makes
the page; ``--search`` searches for multipliers by role, and collects the study that confirms them; ``--quick`` runs
fewer, in about ten minutes on two cores, and collects them in ``OUT/NAME/quick.json``.
Every study has a folder ``OUT/NAME/STUDY`` with one file per trial, so the same command resumes after any interruption.
A study whose data is missing is skipped.

``--restore`` first unpacks ``experiments/results/NAME.json`` where there is no folder yet, so that seeds can be added;
a study is refused if its task file or the versions have changed since. ``--collect`` trains nothing, and collects the
seeds that all methods have finished.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from claims import Experiment, Metric, Search, Study
from gains import Results
from results_file import add_results, read_results
from studies import NAMES, load_experiment
from tables import study_tables

import tempbalance as tb
from tempbalance.errors import StudyError, TempBalanceError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = HERE.parents[1] / "shared" / "data"
INTERRUPTED = 130  # exit status
COUNTED = ("task", "methods", "seeds", "lr", "tuning_seeds")  # arguments for the number of trials
SHARED = ("task", "tuning_seeds", "first_seed", "lr", "lower_is_better", "parameters", "paths", "jobs")  # with a search


def arguments(argv: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Run the studies of an experiment.")
    parser.add_argument("experiment", choices=names)
    extent = parser.add_mutually_exclusive_group(required=True)
    extent.add_argument("--quick", action="store_true", help="about ten minutes on two cores")
    extent.add_argument("--full", action="store_true", help="all studies")
    extent.add_argument("--search", action="store_true", help="all searches, one after the other")
    parser.add_argument("--only", metavar="STUDY", help="one of them")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the trials (default: runs)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of all data (see experiments/README.md)")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), metavar="N", default=2, help="trials at a time (default: 2)"
    )
    parser.add_argument("--restore", action="store_true", help="resume from the results in the repository")
    parser.add_argument("--collect", action="store_true", help="train nothing, collect finished trials")
    return parser.parse_args(argv)


def choose(experiment: Experiment, given: argparse.Namespace) -> list[Study]:
    """The studies to run, without those whose data is missing."""
    studies = experiment.quick if given.quick else experiment.searches if given.search else experiment.full
    chosen = [study for study in studies if given.only in (None, study.name)]
    if given.search and (given.restore or given.collect):
        raise StudyError("--restore and --collect are for studies: a search resumes from its own folder")
    if not chosen:
        names = ", ".join(study.name for study in studies)
        raise StudyError(f"{experiment.name} has no study {given.only}; it has {names}")
    return chosen


def missing(experiment: Experiment, study: Study, data: Path) -> str:
    """Describe the missing package or file of a study and how to get it; return an empty string if none is missing."""
    for package, how in experiment.packages.items():
        if importlib.util.find_spec(package) is None:
            return f"it needs the package {package}: {how}"
    if study.data is None:
        return ""
    for path in (data / study.data / file for file in ("", *study.files)):
        if not path.exists():
            return f"there is no {path}: {experiment.sources[study.data]}; --data names the folder of all data"
    return ""


def options(experiment: Experiment, study: Study, given: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``tempbalance.study.run``."""
    return {
        "task": HERE / experiment.task,
        "methods": study.methods,
        "seeds": study.seeds,
        "first_seed": study.first_seed,
        "lr": study.lr,
        "tuning_seeds": study.tuning_seeds,
        "lower_is_better": experiment.metric.lower_is_better,
        "parameters": study.parameters,
        "paths": {} if study.data is None else {"data": str(given.data / study.data)},
        "train": not given.collect,
        "jobs": given.jobs,
    }


def search(experiment: Experiment, budget: Search, out: Path, given: argparse.Namespace) -> dict[str, Any] | None:
    """Search for multipliers, and collect the study that confirms them; None if plain is the best."""
    shared = options(experiment, budget, given)
    result = tb.study.search(
        out=out,
        trials=budget.trials,
        final_seeds=budget.final_seeds,
        confirm=budget.seeds,
        controls=("uniform", "shuffled"),
        **{"seeds" if key == "tuning_seeds" else key: shared[key] for key in SHARED},
    )
    if result.confirmation is None:
        return None
    own = {name: part for name, part in result.to_dict().items() if name not in {"confirmation", "files"}}
    return {**tb.study.collect_folder(out / "confirmation"), "search": own}


def finish(out: Path, study: Study, metric: Metric, entry: dict[str, Any], results: Path) -> None:
    """Save a study that has ended, and print its tables."""
    add_results(results, study.name, entry)
    counts = Counter(run["status"] for run in entry["runs"])
    seeds, hours = entry["summary"]["seeds"], sum(run["seconds"] for run in entry["runs"]) / 3600
    print(
        f"{study.name}: {seeds} of {study.seeds} seeds; {len(entry['runs'])} trials, {counts['diverged']} diverged, "
        f"{counts['failed']} failed; {hours:.2f} hours of training. {entry['summary']['recommendation']}\n"
    )
    print(f"{study_tables(Results(study, entry, metric))}\n", flush=True)
    if counts["failed"]:
        print(f"{study.name}: the errors of failed trials are in {out / 'runs'}; delete their files to retry")


def main(
    argv: Sequence[str] | None = None,
    *,
    experiment: Experiment | None = None,
    results: Path = RESULTS,
) -> int:
    """Run, collect, print.

    Args:
        argv: The command line.
        experiment: The experiment, by default the one that the command line names.
        results: The folder of results.

    Returns:
        0 if all studies have been run, else 1; 130 if interrupted.
    """
    given = arguments(argv, NAMES if experiment is None else (experiment.name,))
    try:
        experiment = experiment or load_experiment(given.experiment)
        chosen = choose(experiment, given)
        folder = given.out / experiment.name
        studies: dict[Path, Study] = {}
        for study in chosen:
            reason = missing(experiment, study, given.data)
            if reason:
                print(f"{study.name}: skipped, {reason}", file=sys.stderr)
            else:
                studies[folder / study.name] = study
        if given.restore:
            restore(experiment, studies, read_results(results / f"{experiment.name}.json"))
        file = folder / "quick.json" if given.quick else results / f"{experiment.name}.json"
        done = 0
        for out, entry in collected(experiment, studies, given):
            if entry is not None:
                finish(out, studies[out], experiment.metric, entry, file)
                done += 1
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; finished trials are in {given.out}: run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    if done:
        print(f"saved {file}")
    return 0 if done == len(chosen) else 1


def collected(
    experiment: Experiment, studies: Mapping[Path, Study], given: argparse.Namespace
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Run the studies or searches, and collect each when it has ended; None if it has no results."""
    if given.search:
        for out, study in studies.items():
            assert isinstance(study, Search)
            entry = search(experiment, study, out, given)
            if entry is None:
                print(f"{study.name}: no multipliers were better than plain", file=sys.stderr)
            yield out, entry
        return
    arguments_of = {out: options(experiment, study, given) for out, study in studies.items()}
    for each in arguments_of.values():  # a wrong one is refused before any trial
        tb.study.count_trials(**{name: each[name] for name in COUNTED})
    for out, each in arguments_of.items():
        try:
            tb.study.run(out=out, **each)
        except StudyError as error:
            print(f"{studies[out].name}: stopped, {error}", file=sys.stderr)
            yield out, None
        else:
            yield out, tb.study.collect_folder(out)


def restore(experiment: Experiment, studies: Mapping[Path, Study], entries: Mapping[str, Any]) -> None:
    """Unpack committed results where there is no folder yet."""
    task = tb.study.load_task(HERE / experiment.task)
    for out, study in studies.items():
        if study.name in entries and not out.exists():
            entry = json.loads(json.dumps(entries[study.name]))
            settings = entry["settings"]["settings"]
            if settings["task"] in {f"{task.name} ({digest})" for digest in experiment.same_tasks}:
                settings["task"] = f"{task.name} ({task.digest})"
            tb.study.restore_folder(entry, out)
            print(f"{study.name}: {len(entry['runs'])} trials restored")


if __name__ == "__main__":
    torch.set_num_threads(1)  # also of the processes to come
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the processes, as for Ctrl-C
    sys.exit(main())
