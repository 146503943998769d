"""Run a study: tune every method with the same number of configurations, then train the best of each on all seeds."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeAlias

from tempbalance._files import as_path
from tempbalance._progress import progress_bar
from tempbalance.errors import StudyError, check_integer, check_type
from tempbalance.study.candidates import Candidate, Configuration, read_candidates
from tempbalance.study.method import PLAIN
from tempbalance.study.study_folder import StudyFolder, common_settings, open_folder
from tempbalance.study.summary import Result, Summary, summarize
from tempbalance.study.task import Trial, load_task
from tempbalance.study.workers import Wanted, Workers

__all__ = ["FIRST_TUNING_SEED", "Runner", "check_seeds", "count_trials", "run", "validation_of"]

FIRST_TUNING_SEED = 1_000_000
_QUICK = 2  # seeds
_MOST_FAILED = 2  # trials that may fail before one has finished
_logger = logging.getLogger("tempbalance")

_TaskLike: TypeAlias = str | os.PathLike[str] | Callable[..., object]


def run(  # noqa: PLR0913  each is an option of a study
    task: _TaskLike,
    methods: Sequence[str],
    out: str | os.PathLike[str],
    *,
    seeds: int = 10,
    first_seed: int = 0,
    lr: Sequence[float] = (),
    tuning_seeds: int = 3,
    baseline: str = PLAIN,
    lower_is_better: bool = False,
    parameters: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
    quick: bool = False,
    train: bool = True,
    jobs: int = 1,
    progress: bool = True,
) -> Summary:
    """Compare training methods on a task, seed by seed.

    Every trial is written to ``out`` when it is finished. The same call resumes an interrupted study, and more seeds or
    methods add to it. Where a method has several configurations (learning rates, or lists in its name), each is
    trained on the tuning seeds, and the one with the best mean validation metric is compared.

    Args:
        task: A Python file with ``train(seed, method, ...)``, or such a function; see :func:`load_task`. It calls
            ``method.balance(optimizer, model, steps_per_epoch=...)`` and returns a number, or a mapping with ``test``
            and, for tuning, ``validation``.
        methods: Names of methods, see :class:`Method`; ``plain`` is always included.
        out: Folder for the trials and ``summary.json``.
        seeds: Number of seeds.
        first_seed: First seed; use new seeds to confirm a result.
        lr: Learning rates that each method chooses from; empty for the task's default.
        tuning_seeds: Number of separate seeds for tuning.
        baseline: Method that the others are compared with.
        lower_is_better: Whether a smaller metric is better.
        parameters: Further arguments of the training function.
        paths: Further arguments that do not define the study, such as folders of data; not recorded.
        quick: Two seeds and no tuning, to test the task.
        train: Whether to train; if false, summarize the seeds that all methods have finished.
        jobs: Number of trials to train at a time. More than one are trained in processes of their own, which share the
            threads of torch, and of several GPUs have one each in turn; the task must then be a file, or a function of
            a module.
        progress: Whether to show a progress bar (only on a terminal).

    Returns:
        One row per method, and a recommendation.

    Raises:
        StudyError: A method or an argument is wrong, the folder contains other files or trials with other settings,
            or ``train`` is false and no seed is finished.

    Example:
        >>> import tempfile, torch, tempbalance as tb
        >>> def train(seed, method):
        ...     model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
        ...     method.balance(torch.optim.SGD(model.parameters(), lr=0.1), model, steps_per_epoch=10)
        ...     return float(seed)  # train the model, and return its accuracy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tb.study.run(train, ["model_balancing_sciml"], folder, seeds=2).recommendation
        '2 seeds are too few to recommend a method: run 10 or more.'
    """
    for name, value in (("seeds", seeds), ("tuning_seeds", tuning_seeds), ("first_seed", first_seed)):
        check_integer(name, value)
    check_integer("jobs", jobs, 1)
    if min(seeds, tuning_seeds) < 1 or first_seed < 0:
        raise StudyError(
            f"seeds and tuning_seeds must be at least 1 and first_seed at least 0, got {seeds}, {tuning_seeds} and "
            f"{first_seed}"
        )
    check_seeds(first_seed, seeds)
    check_type("lr", lr, Sequence)
    parameters = {} if parameters is None else parameters
    check_type("parameters", parameters, Mapping)
    loaded = load_task(task, {**parameters, **(paths or {})})
    candidates = read_candidates(methods, lr, baseline, loaded.custom_methods)
    if quick:
        seeds = _QUICK
        candidates = [replace(each, configurations=each.configurations[:1]) for each in candidates]
    settings = common_settings(loaded, parameters, lower_is_better)
    extent = {
        "methods": [each.name for each in candidates],
        "lr": [*lr] or None,
        "seeds": seeds,
        "first_seed": first_seed,
        "tuning_seeds": tuning_seeds,
    }
    for candidate in candidates:
        for configuration in candidate.configurations:
            loaded.check(configuration)
    with (
        open_folder(as_path("out", out), settings, extent, retry=train) as folder,
        Workers(loaded, task, jobs) as workers,
    ):
        total = _count(candidates, seeds, tuning_seeds)
        with progress_bar("training", total, progress and train) as advance:
            runner = Runner(folder, workers.train if train else None, lower_is_better, advance)
            chosen = runner.tune(candidates, range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tuning_seeds))
            trials = runner.compare(chosen, range(first_seed, first_seed + seeds))
        results = [Result(candidate=each, chosen=chosen[i], trials=trials[i]) for i, each in enumerate(candidates)]
        summary = summarize(results, lower_is_better=lower_is_better, settings={**settings, **extent})
        folder.save_summary(summary.to_dict())
    return summary


def check_seeds(first: int, count: int) -> None:
    """Raise a StudyError if seeds of a comparison are seeds of tuning."""
    if count and first + count > FIRST_TUNING_SEED:
        raise StudyError(
            f"seeds {first} to {first + count - 1}: those from {FIRST_TUNING_SEED} on are for tuning, use smaller ones"
        )


def count_trials(
    task: _TaskLike,
    methods: Sequence[str],
    *,
    seeds: int = 10,
    lr: Sequence[float] = (),
    tuning_seeds: int = 3,
    baseline: str = PLAIN,
) -> int:
    """Count the trials of a study, tuning included; the arguments are those of :func:`run`."""
    return _count(read_candidates(methods, lr, baseline, load_task(task).custom_methods), seeds, tuning_seeds)


def _count(candidates: Sequence[Candidate], seeds: int, tuning_seeds: int) -> int:
    configurations = len(candidates[0].configurations)
    return len(candidates) * (seeds + (configurations * tuning_seeds if configurations > 1 else 0))


@dataclass(frozen=True)
class Runner:
    """Trains trials that are not in the folder yet.

    Attributes:
        folder: Where the trials are.
        train: Function that trains and yields trials, in any order; None to compare only those seeds that all methods
            have finished.
        lower_is_better: Whether a smaller metric is better.
        advance: Called with the number of finished trials.
    """

    folder: StudyFolder
    train: Callable[[Sequence[Wanted]], Iterable[Trial]] | None
    lower_is_better: bool
    advance: Callable[[int], None]

    def tune(self, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Configuration]:
        """Choose a configuration per candidate: with the fewest diverged or failed trials, then by the mean metric."""
        if len(candidates[0].configurations) == 1:
            return [each.configurations[0] for each in candidates]
        tried = [*dict.fromkeys(each for one in candidates for each in one.configurations)]
        if self.train is None and not all(self._is_done(each, seed) for each in tried for seed in seeds):
            raise StudyError(f"{self.folder.path}: no seed is finished yet, the tuning is incomplete")
        found = {
            wanted: validation_of(trial)
            for wanted, trial in self.trials([(each, seed) for seed in seeds for each in tried])
        }
        merits = {each: self._merit([found[each, seed] for seed in seeds]) for each in tried}
        return [max(each.configurations, key=merits.__getitem__) for each in candidates]

    def compare(self, chosen: Sequence[Configuration], seeds: Sequence[int]) -> list[list[Trial]]:
        """Train seed by seed, so that an interrupted study has complete pairs; return the trials of each candidate."""
        if self.train is None:
            seeds = [seed for seed in seeds if all(self._is_done(each, seed) for each in chosen)]
            if not seeds:
                raise StudyError(f"{self.folder.path}: no seed is finished yet")
        found = dict(self.trials([(each, seed) for seed in seeds for each in dict.fromkeys(chosen)]))
        return [[found[each, seed] for seed in seeds] for each in chosen]

    def _is_done(self, configuration: Configuration, seed: int) -> bool:
        return self.folder.file(configuration, seed).exists()

    def trials(self, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, Trial]]:
        """Yield trials: first those from the folder, then the others when they are trained and written there."""
        missing: list[Wanted] = []
        failed = 0
        for each in wanted:
            saved = self.folder.load(*each)
            if saved is None:
                missing.append(each)
            else:
                self.advance(1)
                yield each, saved
        for trial in self.train(missing) if self.train is not None else ():
            path, configuration = self.folder.save(trial), Configuration(trial.method, trial.lr)
            if trial.status == "failed":
                failed += 1
                _logger.warning(
                    "failed: %s, seed %d: %s (traceback in %s)", configuration, trial.seed, trial.reason, path
                )
                if failed == _MOST_FAILED and self.folder.all_failed():
                    raise StudyError(
                        f"the first {failed} trials failed, so the study stopped: correct the task and run it again, "
                        "with the same folder if you like"
                    )
            self.advance(1)
            yield (configuration, trial.seed), trial

    def _merit(self, metrics: Sequence[float]) -> tuple[int, float]:
        finite = [-value if self.lower_is_better else value for value in metrics if math.isfinite(value)]
        return len(finite), fmean(finite) if finite else 0.0


def validation_of(trial: Trial) -> float:
    """Return the metric to tune by; NaN if the trial diverged or failed."""
    if trial.status != "ok":
        return math.nan
    if "validation" not in trial.metrics:
        raise StudyError(
            "to tune, the task must return {'validation': ..., 'test': ...}: if the test metric chose the "
            "configuration, every method would look better than it is"
        )
    return trial.metrics["validation"]
