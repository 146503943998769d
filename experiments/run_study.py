"""Hold the contests of a study, and keep every run: ``python experiments/run_study.py digits --quick``.

``--full`` holds all contests of the study and collects them in ``experiments/results/NAME.json``, from which
``report_study.py`` makes the page; ``--quick`` holds less, in about ten minutes on two cores, and collects in
``OUT/NAME/quick.json``. Each contest has a folder ``OUT/NAME/CONTEST`` with one file a run, so the same command goes on
where it was stopped, in whatever way. A contest whose data is missing is skipped, and the others go on.

``--restore`` first unpacks ``experiments/results/NAME.json`` where there is no folder yet, so that seeds can be added
to what was done elsewhere; a contest is refused if its task file or the versions have changed since. ``--collect``
trains nothing, and collects what the folders hold: of a contest not at its end, the seeds that every method has run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from evidence.compare import Compared
from evidence.hold import Job, count_runs, hold_all
from evidence.keep import add_results, collect, read_results, restore
from evidence.study import Contest, Metric, Study, StudyError
from evidence.tables import contest_tables
from studies import NAMES, load_study

from tempbalance.errors import TempBalanceError
from tempbalance.study.task import load_task

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = HERE.parents[1] / "shared" / "data"
INTERRUPTED = 130  # exit status


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hold the contests of a study.")
    parser.add_argument("study", choices=NAMES)
    extent = parser.add_mutually_exclusive_group(required=True)
    extent.add_argument("--quick", action="store_true", help="about ten minutes on two cores")
    extent.add_argument("--full", action="store_true", help="all contests")
    parser.add_argument("--only", metavar="CONTEST", help="one of them")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of all data (see experiments/README.md)")
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(1, 65),
        metavar="N",
        default=2,
        help="contests at a time, a core each (default: 2)",
    )
    parser.add_argument("--restore", action="store_true", help="go on from the results in the repository")
    parser.add_argument("--collect", action="store_true", help="train nothing, collect what the folders hold")
    return parser.parse_args(argv)


def choose(study: Study, given: argparse.Namespace) -> list[Contest]:
    """The contests that were asked for."""
    contests = study.quick if given.quick else study.full
    if given.only is None:
        return [*contests]
    chosen = [contest for contest in contests if contest.name == given.only]
    if not chosen:
        raise StudyError(
            f"{study.name} has no contest {given.only}; it has {', '.join(each.name for each in contests)}"
        )
    return chosen


def missing(study: Study, contest: Contest, data: Path) -> str:
    """What a contest lacks, and where to get it; empty if nothing."""
    for package, how in study.packages.items():
        if importlib.util.find_spec(package) is None:
            return f"it needs the package {package}: {how}"
    if contest.data is None:
        return ""
    for path in (data / contest.data / file for file in ("", *contest.files)):
        if not path.exists():
            return f"there is no {path}: {study.sources[contest.data]}; --data names the folder of all data"
    return ""


def plan(study: Study, contests: Sequence[Contest], given: argparse.Namespace) -> list[Job]:
    """What can be held, after saying what cannot."""
    ready: list[Contest] = []
    for contest in contests:
        reason = missing(study, contest, given.data)
        if reason:
            print(f"{contest.name}: skipped, {reason}", file=sys.stderr)
        else:
            ready.append(contest)
    if not ready:
        return []
    path = HERE / study.task
    task = load_task(path)
    return [
        Job(
            contest=contest,
            task=path,
            lower_is_better=study.metric.lower_is_better,
            data=given.data,
            folder=given.out / study.name / contest.name,
            trains=not given.collect,
            runs=count_runs(contest, task),
        )
        for contest in ready
    ]


def unpack(jobs: Sequence[Job], results: Path) -> None:
    """Make the folders that are not there from the results."""
    entries = read_results(results)
    for job in jobs:
        name = job.contest.name
        if name in entries and not job.folder.exists():
            restore(entries[name], job.folder)
            print(f"{name}: {job.done} runs restored")


def finish(job: Job, ended: bool, metric: Metric, results: Path) -> bool:
    """Collect a contest, and say what came of it."""
    if not ended:
        last_line = job.log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
        print(f"{job.contest.name}: stopped, {last_line} ({job.log})", file=sys.stderr)
        return False
    if not (job.folder / "summary.json").exists():
        print(f"{job.contest.name}: no seed is done yet", file=sys.stderr)
        return False
    entry = collect(job.folder)
    add_results(results, job.contest.name, entry)
    counts = Counter(run["status"] for run in entry["runs"])
    seeds, hours = entry["summary"]["seeds"], sum(run["seconds"] for run in entry["runs"]) / 3600
    print(
        f"{job.contest.name}: {seeds} of {job.contest.seeds} seeds; {len(entry['runs'])} runs, {counts['diverged']} "
        f"diverged, {counts['failed']} failed; {hours:.2f} hours of training. {entry['summary']['recommendation']}\n"
    )
    print(f"{contest_tables(Compared(job.contest, entry, metric))}\n", flush=True)
    if counts["failed"]:
        print(f"{job.contest.name}: why runs failed is in {job.log}; delete their files to make them again")
    return True


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    """Hold, collect, say.

    Args:
        argv: The command line.
        results: The folder of results.

    Returns:
        0 if all that was asked for is done, else 1; 130 if it was interrupted.
    """
    given = arguments(argv)
    try:
        study = load_study(given.study)
        contests = choose(study, given)
        jobs = plan(study, contests, given)
        if given.restore:
            unpack(jobs, results / f"{study.name}.json")
        file = given.out / study.name / "quick.json" if given.quick else results / f"{study.name}.json"
        (given.out / study.name).mkdir(parents=True, exist_ok=True)
        with closing(hold_all(jobs, given.jobs)) as held:
            done = [finish(job, ended, study.metric, file) for job, ended in held]
    except TempBalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; the runs are kept in {given.out}: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    if any(done):
        print(f"saved {file}")
    return 0 if len(done) == len(contests) and all(done) else 1


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as by Ctrl-C: ends them, too
    sys.exit(main())
