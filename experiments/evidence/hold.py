"""One contest, held in a process of its own; several of them at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

import torch

from evidence.study import Contest
from tempbalance._files import dumps, write_whole
from tempbalance._progress import progress_bar
from tempbalance.errors import TempBalanceError
from tempbalance.study.candidates import Candidate, read_candidates
from tempbalance.study.run_folder import Folder, common_settings, open_folder
from tempbalance.study.runner import FIRST_TUNING_SEED, run_contest
from tempbalance.study.summary import summarize
from tempbalance.study.task import Task, load_task

POLL = 1.0  # seconds


def count_runs(contest: Contest, task: Task) -> int:
    """How many runs a contest takes, the tuning included; an StudyError if it asks for what there is not."""
    candidates = read_candidates(contest.methods, contest.lr, makers=task.makers)
    trials = len(candidates[0].trials)
    return len(candidates) * (contest.seeds + (trials * contest.tuning_seeds if trials > 1 else 0))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A contest with where it is held.

    Attributes:
        contest: The contest.
        task: The task file.
        lower_is_better: Of its metric.
        data: The folder of all data.
        folder: For the runs; beside it is a log of the same name.
        trains: Whether the runs that are missing are made, or only those collected that are there.
        runs: How many it takes, the tuning included.
    """

    contest: Contest
    task: Path
    lower_is_better: bool
    data: Path
    folder: Path
    trains: bool
    runs: int

    @property
    def log(self) -> Path:
        """What went wrong, and the warnings."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def done(self) -> int:
        """How many runs it has."""
        return min(self.runs, sum(1 for _ in self.folder.glob("runs/*/seed-*.json")))


def hold(job: Job) -> None:
    """Hold a contest, as ``tempbalance arena`` does, and leave a summary in its folder.

    Args:
        job: The contest.
    """
    contest = job.contest
    data = {} if contest.data is None else {"data": str(job.data / contest.data)}
    task = load_task(job.task, {**contest.settings, **data})
    candidates = read_candidates(contest.methods, contest.lr, makers=task.makers)
    # where the data lies is not what distinguishes runs
    common = common_settings(replace(task, parameters=contest.settings), job.lower_is_better)
    extent = {
        "methods": [each.name for each in candidates],
        "lr": contest.lr,
        "seeds": contest.seeds,
        "first_seed": contest.first_seed,
        "tuning_seeds": contest.tuning_seeds,
    }
    with open_folder(job.folder, common, extent) as folder:
        seeds = contest.seeds if job.trains else _seeds_done(task, candidates, folder, job)
        (folder.path / "summary.json").unlink(missing_ok=True)  # of fewer runs
        if seeds:
            results = run_contest(
                task,
                candidates,
                folder,
                seeds=range(contest.first_seed, contest.first_seed + seeds),
                tuning_seeds=contest.tuning_seeds,
                lower_is_better=job.lower_is_better,
            )
            summary = summarize(results, lower_is_better=job.lower_is_better)
            write_whole(folder.path / "summary.json", (dumps(summary.to_json()) + "\n").encode())


def _seeds_done(task: Task, candidates: Sequence[Candidate], folder: Folder, job: Job) -> int:
    """In how many seeds, one after the other, all methods have been run."""
    contest = job.contest
    trials = [trial for each in candidates for trial in each.trials]
    elsewhere = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + contest.tuning_seeds)
    is_tuned = len(trials) > len(candidates)
    if is_tuned and not all(folder.file(trial, seed).exists() for trial in trials for seed in elsewhere):
        return 0
    chosen = run_contest(
        task, candidates, folder, seeds=(), tuning_seeds=contest.tuning_seeds, lower_is_better=job.lower_is_better
    )
    seeds = range(contest.first_seed, contest.first_seed + contest.seeds)
    rounds = (all(folder.file(each.chosen, seed).exists() for each in chosen) for seed in seeds)
    return next((done for done, whole in enumerate(rounds) if not whole), contest.seeds)


def hold_all(jobs: Sequence[Job], at_a_time: int) -> Iterator[tuple[Job, bool]]:
    """Hold contests, some at a time, each in a process of its own.

    Args:
        jobs: The contests, in their order.
        at_a_time: How many processes.

    Yields:
        A contest that has ended, and whether it came to its end.
    """
    spawn = multiprocessing.get_context("spawn")
    waiting, running = [*jobs], dict[multiprocessing.process.BaseProcess, Job]()
    before = 0
    with progress_bar("training", sum(job.runs for job in jobs)) as advance:
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    job = waiting.pop(0)
                    process = spawn.Process(target=_work, args=(job,), name=job.contest.name)
                    process.start()
                    running[process] = job
                wait([process.sentinel for process in running], timeout=POLL)
                for process in [process for process in running if not process.is_alive()]:
                    yield running.pop(process), process.exitcode == 0
                now = sum(job.done for job in jobs)
                advance(now - before)
                before = now
        finally:
            for process in running:
                process.terminate()
                process.join()


def _work(job: Job) -> None:
    """Hold a contest in this process, and end with status 1 if that cannot be done."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; it is the parent that ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(job.log, "w", encoding="utf-8") as log, redirect_stderr(log):
        try:
            hold(job)
        except TempBalanceError as error:
            log.write(f"{error}\n")
        except Exception:
            traceback.print_exc()
        else:
            return
    sys.exit(1)


def _end_with_parent() -> None:
    """An orphan would hold the lock of its folder; what is lost with it is one run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
