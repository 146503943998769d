"""The comparison itself: tunes every method with the same number of trials, then runs it over the seeds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tempbalance._progress import progress_bar
from tempbalance.errors import StudyError
from tempbalance.study.candidates import Candidate, Trial
from tempbalance.study.run_folder import Folder
from tempbalance.study.task import Run, Task

__all__ = ["FIRST_TUNING_SEED", "Result", "run_contest"]

FIRST_TUNING_SEED = 1_000_000  # no seed of the comparison itself is as large
_logger = logging.getLogger("tempbalance")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one method gave.

    Attributes:
        candidate: The method.
        chosen: Its trial with the best mean validation metric; the first where there is but one.
        runs: Its runs, in the order of the seeds.
    """

    candidate: Candidate
    chosen: Trial
    runs: Sequence[Run]


@dataclass(frozen=True)
class _Runner:
    task: Task
    folder: Folder
    advance: Callable[[int], None]

    def __call__(self, trial: Trial, seed: int) -> Run:
        """Make a run, unless it has been made."""
        run = self.folder.load(trial, seed)
        if run is None:
            run = self.task.run(trial, seed)
            path = self.folder.save(run)
            if run.status == "failed":
                last_line = run.error.strip().rpartition("\n")[2]
                _logger.warning("failed: %s, seed %d: %s (traceback in %s)", trial, seed, last_line, path)
        self.advance(1)
        return run


def run_contest(
    task: Task,
    candidates: Sequence[Candidate],
    folder: Folder,
    *,
    seeds: Sequence[int],
    tuning_seeds: int,
    lower_is_better: bool = False,
) -> list[Result]:
    """Make all runs that the folder does not hold yet: seed by seed, so that a comparison cut short has whole pairs.

    Where a method has several trials, each is run on the tuning seeds, and the one with the best mean validation metric
    goes on; a trial with a run that diverged or failed comes after all that have none.

    Args:
        task: The task.
        candidates: The methods, as many trials each.
        folder: Where the runs are kept.
        seeds: Seeds to compare on.
        tuning_seeds: Other seeds, to choose a trial on.
        lower_is_better: Whether the smallest metric is the best.

    Returns:
        One entry per method.
    """
    tuning: dict[Trial, list[float]] = {trial: [] for candidate in candidates for trial in candidate.trials}
    for trial in tuning:
        task.check(trial)
    is_tuned = any(len(candidate.trials) > 1 for candidate in candidates)
    elsewhere = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tuning_seeds * is_tuned)
    with progress_bar("training", len(tuning) * len(elsewhere) + len(candidates) * len(seeds)) as advance:
        runner = _Runner(task, folder, advance)
        for seed in elsewhere:
            for trial, found in tuning.items():
                found.append(_validation(runner(trial, seed)))
        chosen = [_best({trial: tuning[trial] for trial in each.trials}, lower_is_better) for each in candidates]
        rounds = [[runner(trial, seed) for trial in chosen] for seed in seeds]
    return [
        Result(candidate=candidate, chosen=chosen[i], runs=[runs[i] for runs in rounds])
        for i, candidate in enumerate(candidates)
    ]


def _validation(run: Run) -> float:
    """What a trial is judged by; NaN if it came to nothing."""
    if run.status != "ok":
        return math.nan
    if "validation" not in run.metrics:
        raise StudyError(
            "to choose among trials the task must return {'validation': ..., 'test': ...}: chosen by the test metric, "
            "every method would look better than it is"
        )
    return run.metrics["validation"]


def _best(tuning: Mapping[Trial, Sequence[float]], lower_is_better: bool) -> Trial:
    def merit(trial: Trial) -> tuple[int, float]:
        """The greater the better: first by how many runs came to something, then by their mean."""
        finite = [value for value in tuning[trial] if math.isfinite(value)]
        return len(finite), fmean(-value if lower_is_better else value for value in finite) if finite else 0.0

    return max(tuning, key=merit)
