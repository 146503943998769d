"""Search for the learning rates of units by measured validation, and confirm what was found on fresh seeds."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from tempbalance._files import as_path
from tempbalance._progress import progress_bar
from tempbalance.errors import StudyError, check_integer, check_numbers, check_type, require_extra
from tempbalance.study.candidates import Configuration
from tempbalance.study.controls import CONTROLS
from tempbalance.study.method import PLAIN
from tempbalance.study.runner import FIRST_TUNING_SEED, Runner, check_seeds, run, validation_of
from tempbalance.study.search_exports import write_exports
from tempbalance.study.search_result import SearchResult, SearchTrial, best_first
from tempbalance.study.search_space import SearchSpace, find_space
from tempbalance.study.study_folder import StudyFolder, common_settings, open_folder
from tempbalance.study.task import load_task
from tempbalance.study.workers import Workers

__all__ = ["search"]

_FEWEST_RATES = 2
_SUFFIX = "multiplier"  # ends a name for the sampler: a pattern may be lr
_DIGITS = 4
_FEWEST = 5  # complete trials to compare a new one with
_FINALISTS = 4
_CONFIRMATION = "confirmation"  # folder


def search(  # noqa: PLR0913  each is an option of a search
    task: str | os.PathLike[str] | Callable[..., object],
    out: str | os.PathLike[str],
    *,
    lr: Sequence[float],
    units: str | Sequence[str] = "role",
    trials: int = 40,
    seeds: int = 2,
    final_seeds: int = 8,
    bounds: tuple[float, float] = (0.125, 8.0),
    sampler_seed: int = 0,
    confirm: int = 10,
    first_seed: int = 0,
    controls: Sequence[str] = ("uniform",),
    lower_is_better: bool = False,
    parameters: Mapping[str, Any] | None = None,
    paths: Mapping[str, Any] | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> SearchResult:
    """Search for a base learning rate and a multiplier for each unit of a model, by measured validation.

    The first trials are plain at the given rates, then known multipliers (value and output projections at a quarter,
    ``blockwise_lr``, muP or Muon factors) at the best of these rates; optuna's TPE sampler proposes the others. All
    trials have the same seeds. A sampled trial is stopped if its mean so far is worse than the median of the complete
    trials over the same seeds. The best trial of many on few seeds is often the luckiest, so the best four are trained
    with more seeds before one is chosen. It is then compared with plain in a paired study on fresh seeds. For this
    plain has the best of as many learning rates as the search has trials, by the same seeds and the same rules.

    Every training is written to ``out`` when it is finished. The same call resumes an interrupted search, and one with
    more trials continues it: the sampler is seeded and proposes the same trials, whose results are read.

    Args:
        task: A Python file with ``train(seed, method, lr, ...)``, or such a function, that returns ``validation`` and
            ``test``; see :func:`load_task`. The search uses only ``validation``.
        out: Folder for the trials and the result.
        lr: Base learning rates to start with. The smallest and the largest are the range of the search.
        units: ``"role"``, ``"block"`` or ``"layer"``: one multiplier for each of the model; or patterns, as in
            :class:`~tempbalance.balance.assign.Fixed`: one for each pattern. All other parameters keep the base rate.
        trials: Number of trials.
        seeds: Number of seeds of each trial.
        final_seeds: Number of seeds of the best four trials, and of plain, before one is chosen; ``seeds`` if that is
            larger.
        bounds: Smallest and largest multiplier.
        sampler_seed: Seed of the sampler.
        confirm: Number of seeds of the paired study; 0 leaves it out.
        first_seed: First of these seeds.
        controls: Controls of the paired study, see :class:`Method`.
        lower_is_better: Whether a smaller metric is better.
        parameters: Further arguments of the training function.
        paths: Further arguments that do not define the search, such as folders of data; not recorded.
        jobs: Number of trainings at a time, as in :func:`run`. Trials come one after the other, each with its seeds
            side by side; the rates of plain and the confirmation use all jobs.
        progress: Whether to show a progress bar (only on a terminal).

    Returns:
        The best trial and the confirmation. ``out`` has ``summary.json`` and, if the best trial has multipliers,
        ``multipliers.yaml`` for ``recipes.fixed``, ``axolotl.yaml`` and ``param_groups.py``.

    Raises:
        StudyError: An argument is wrong, the folder contains other files or another search, the first trial fails, or
            all starting points diverge.
        BalanceError: A pattern matches no parameter of the model, or the optimizer cannot be balanced.
        MissingExtraError: optuna is not installed.

    Example:
        >>> import tempfile, torch, tempbalance as tb
        >>> def train(seed, method, lr):
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        ...     optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        ...     method.balance(optimizer, model)
        ...     for _ in range(5):
        ...         loss = (model(torch.ones(4)) - 1).square().sum()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     return {"validation": loss, "test": loss}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = tb.study.search(train, folder, lr=[0.01, 0.03], trials=6, confirm=0, lower_is_better=True)
        >>> list(found.units), len(found.trials)
        (['role:linear', 'role:head'], 6)
    """
    parameters = {} if parameters is None else parameters
    check_type("parameters", parameters, Mapping)
    controls = [controls] if isinstance(controls, str) else [*controls]
    counts: dict[str, Any] = {"trials": trials, "final_seeds": final_seeds}
    extent = counts | {"confirm": confirm, "first_seed": first_seed, "controls": controls}
    _check_counts(counts | {"seeds": seeds, "jobs": jobs}, extent | {"sampler_seed": sampler_seed})
    rates, limits = _check_rates(lr), _check_bounds(bounds)
    with require_extra("search", "a search needs optuna"):
        import optuna
    loaded = load_task(task, {**parameters, **(paths or {})})
    loaded.check(Configuration(PLAIN, rates[0]))
    space = find_space(loaded, units, rates[0], FIRST_TUNING_SEED)
    _check_trials(trials, rates, space.known_multipliers(*limits))
    of_search = {"units": [*space.units], "start": rates, "lr": [min(rates), max(rates)], "bounds": [*limits]}
    of_search |= {"seeds": seeds, "sampler_seed": sampler_seed, "optuna": optuna.__version__}
    settings = common_settings(loaded, parameters, lower_is_better) | {"search": of_search}
    with open_folder(as_path("out", out), settings, extent) as folder:
        confirmation, files = None, tuple[Path, ...]()
        with Workers(loaded, task, jobs) as workers:
            tuner = _Tuner(workers, folder, seeds, final_seeds, lower_is_better, progress)
            tried = _sample(tuner, space, of_search, trials)
            finalists = tuner.finalists(tried)
            best = tuner.best(finalists)
            if best.status != "complete":
                raise StudyError(f"the best {len(finalists)} trials diverged or failed with more seeds: lower lr")
            plain = tuner.best(_plain(finalists) or _plain(tried))
            if best.multipliers:
                files = write_exports(folder.path, best, space)
                plain = tuner.best_plain(rates, trials) if confirm else plain
        if files and confirm:
            given: dict[str, Any] = {"parameters": parameters, "paths": paths, "jobs": jobs, "progress": progress}
            confirmation = run(
                task,
                _compared(best, plain, controls),
                folder.path / _CONFIRMATION,
                seeds=confirm,
                first_seed=first_seed,
                lower_is_better=lower_is_better,
                **given,
            ).shortened(best.method, f"fixed:multipliers={str(files[0])!r}")
        result = SearchResult(
            best=best,
            plain=plain,
            trials=tuple(tried),
            finalists=tuple(finalists),
            units=space.units,
            lower_is_better=lower_is_better,
            confirmation=confirmation,
            files=files,
            settings={**settings, **extent},
        )
        folder.save_summary(result.to_dict())
    return result


def _check_counts(positive: Mapping[str, int], extent: Mapping[str, Any]) -> None:
    for name, value in positive.items():
        check_integer(name, value, 1)
    for name in ("confirm", "first_seed", "sampler_seed"):
        check_integer(name, extent[name], 0)
    check_seeds(extent["first_seed"], extent["confirm"])
    if unknown := [each for each in extent["controls"] if each not in CONTROLS]:
        raise StudyError(f"there is no control {unknown[0]!r}; the controls are {', '.join(CONTROLS)}")


def _check_trials(trials: int, rates: Sequence[float], known: Iterable[str]) -> None:
    names = [*known]
    if trials < len(rates) + len(names):
        starting = ", ".join([f"plain at {len(rates)} rates", *names])
        raise StudyError(f"{trials} trials are fewer than the starting points ({starting}): use more")


def _check_rates(lr: Sequence[float]) -> list[float]:
    check_type("lr", lr, Sequence)
    check_numbers(**{f"lr[{place}]": rate for place, rate in enumerate(lr)})
    rates = [*dict.fromkeys(map(float, lr))]
    if len(rates) < _FEWEST_RATES or not all(0 < rate < math.inf for rate in rates):
        raise StudyError(
            "a search needs two or more base learning rates, the smallest and the largest to search between, got "
            f"{', '.join(map(str, lr)) or 'none'}"
        )
    return rates


def _check_bounds(bounds: Sequence[float]) -> tuple[float, float]:
    check_type("bounds", bounds, Sequence)
    check_numbers(**{f"bounds[{place}]": bound for place, bound in enumerate(bounds)})
    if len(bounds) != 2 or not 0 < bounds[0] <= 1 <= bounds[1] < math.inf or bounds[0] == bounds[1]:  # noqa: PLR2004
        raise StudyError(f"bounds must be the smallest and the largest multiplier, around 1, got {bounds}")
    return float(bounds[0]), float(bounds[1])


class _Point(NamedTuple):
    """What a trial trains."""

    origin: str
    lr: float
    multipliers: Mapping[str, float]


@dataclass(frozen=True)
class _Tuner:
    """Trains trials with the seeds of the search, as far as they are not in the folder."""

    workers: Workers
    folder: StudyFolder
    count: int  # seeds of a trial
    final_count: int
    lower_is_better: bool
    progress: bool

    @property
    def seeds(self) -> range:
        """The seeds of a trial."""
        return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.count)

    def train(
        self, point: _Point, before: Iterable[SearchTrial], *, may_stop: bool, advance: Callable[[int], None]
    ) -> SearchTrial:
        """Train with one seed after the other; stop after one that diverged, or if it is worse than those before."""
        new = SearchTrial(origin=point.origin, lr=point.lr, multipliers=point.multipliers, values=(), status="complete")
        runner = Runner(self.folder, self.workers.train, self.lower_is_better, advance)
        configuration, one_by_one = Configuration(new.method, new.lr), self.workers.jobs == 1
        trained = dict(runner.trials([] if one_by_one else [(configuration, seed) for seed in self.seeds]))
        for count, seed in enumerate(self.seeds, 1):
            if one_by_one:  # no other is needed after a poor one
                trained |= runner.trials([(configuration, seed)])
            trial = trained[configuration, seed]
            value = validation_of(trial)
            if not math.isfinite(value):
                new = replace(new, status="failed" if trial.status == "failed" else "diverged")
            else:
                new = replace(new, values=(*new.values, value))
                if may_stop and count < len(self.seeds) and self._is_poor(new, before):
                    new = replace(new, status="stopped")
            if new.status != "complete":
                advance(len(self.seeds) - len(trained))
                break
        return new

    def finalists(self, trials: Iterable[SearchTrial]) -> list[SearchTrial]:
        """Train the best trials and the best plain one with more seeds; none if no trial is complete."""
        ranked = best_first(trials, self.lower_is_better)
        best = ranked[:_FINALISTS]
        chosen = [*best, *(each for each in _plain(ranked)[:1] if each not in best)]
        more = replace(self, count=max(self.count, self.final_count))
        with progress_bar("comparing the best", len(chosen) * len(more.seeds), self.progress) as advance:
            points = [_Point(each.origin, each.lr, each.multipliers) for each in chosen]
            return [more.train(point, (), may_stop=False, advance=advance) for point in points]

    def best(self, trials: Iterable[SearchTrial]) -> SearchTrial:
        """Return the best complete trial; the first if none is complete."""
        return [*best_first(tried := [*trials], self.lower_is_better), *tried][0]

    def best_plain(self, rates: Sequence[float], count: int) -> SearchTrial:
        """Tune plain with the given learning rates and as many as the search has trials, by the same rules."""
        grid = dict.fromkeys([*rates, *map(_rounded, np.geomspace(min(rates), max(rates), count))])
        tried: list[SearchTrial] = []
        with progress_bar("tuning plain", len(grid) * len(self.seeds), self.progress) as advance:
            side_by_side = self.workers.jobs > 1
            if side_by_side:  # all rates side by side: below, their trials are read from the folder
                wanted = [(Configuration(PLAIN, rate), seed) for rate in grid for seed in self.seeds]
                deque(Runner(self.folder, self.workers.train, self.lower_is_better, advance).trials(wanted), maxlen=0)
            count_one = (lambda _: None) if side_by_side else advance
            for rate in grid:
                tried.append(self.train(_Point(PLAIN, rate, {}), tried, may_stop=rate not in rates, advance=count_one))
        return self.best(self.finalists(tried) or tried)

    def _is_poor(self, new: SearchTrial, before: Iterable[SearchTrial]) -> bool:
        """Compare with the median over the same seeds; a test such as Wilcoxon's needs more seeds than a trial has."""
        means = [fmean(each.values[: len(new.values)]) for each in before if each.status == "complete"]
        sign = 1 if self.lower_is_better else -1
        return len(means) >= _FEWEST and sign * new.mean > sign * median(means)


def _sample(tuner: _Tuner, space: SearchSpace, settings: Mapping[str, Any], count: int) -> list[SearchTrial]:
    """Train the starting points, then what the sampler proposes."""
    import optuna

    known = space.known_multipliers(*settings["bounds"])
    sampler = optuna.samplers.TPESampler(multivariate=True, seed=settings["sampler_seed"])
    tried: list[SearchTrial] = []
    starting = _starting_points(tuner, settings["start"], known, tried)
    with _quiet(), progress_bar("searching", count * len(tuner.seeds), tuner.progress) as advance:
        study = optuna.create_study(sampler=sampler, direction="minimize" if tuner.lower_is_better else "maximize")
        for _ in range(count):
            start = next(starting, None)
            if start is not None:
                multipliers = {f"{unit} {_SUFFIX}": start.multipliers.get(unit, 1.0) for unit in space.units}
                study.enqueue_trial({"lr": start.lr, **multipliers})
            elif all(each.status != "complete" for each in tried):
                break
            proposed = study.ask()
            lr = _suggest(proposed, "lr", settings["lr"])
            multipliers = {unit: _suggest(proposed, f"{unit} {_SUFFIX}", settings["bounds"]) for unit in space.units}
            trial = tuner.train(
                start or _Point("sampled", lr, multipliers), tried, may_stop=start is None, advance=advance
            )
            if not tried and trial.status == "failed":
                raise StudyError(
                    f"the first trial failed: its traceback is in "
                    f"{tuner.folder.file(Configuration(trial.method, trial.lr), tuner.seeds[len(trial.values)])}; "
                    "correct the task and search again"
                )
            tried.append(trial)
            if trial.status == "stopped":
                proposed.report(trial.mean, len(trial.values))
            done = trial.status == "complete"
            study.tell(proposed, trial.mean if done else None, None if done else optuna.trial.TrialState.PRUNED)
    if all(each.status != "complete" for each in tried):
        raise StudyError(
            f"all {len(tried)} starting points diverged or failed, with rates from {settings['lr'][0]:g} to "
            f"{settings['lr'][1]:g}: lower lr"
        )
    return tried


def _suggest(proposed: Any, name: str, limits: tuple[float, float]) -> float:
    value = proposed.suggest_float(name, *limits, log=True)
    return min(max(_rounded(value), limits[0]), limits[1])


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _starting_points(
    tuner: _Tuner, rates: Sequence[float], known: Mapping[str, Mapping[str, float]], tried: Sequence[SearchTrial]
) -> Iterator[_Point]:
    """Yield plain at each rate, then known multipliers at the best of these rates."""
    for rate in rates:
        yield _Point(PLAIN, rate, {})
    best = tuner.best(tried)
    rate = best.lr if best.status == "complete" else min(rates)
    for name, multipliers in known.items():
        yield _Point(name, rate, {unit: _rounded(multiplier) for unit, multiplier in multipliers.items()})


def _compared(best: SearchTrial, plain: SearchTrial, controls: Sequence[str]) -> list[str]:
    """Return the methods of the paired study: plain, what was found, and its controls."""
    rate = f"lr={best.lr!r}"
    return [
        f"{PLAIN}:lr={plain.lr!r}",
        f"{best.method},{rate}",
        *(f"{best.method},control={control},{rate}" for control in controls),
    ]


def _plain(trials: Iterable[SearchTrial]) -> list[SearchTrial]:
    return [each for each in trials if not each.multipliers]


@contextmanager
def _quiet() -> Iterator[None]:
    """Let optuna print warnings only."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
