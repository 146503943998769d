"""Evolutionary search over the levels of units under a budget: staged selection, resumable."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from tempbalance._files import as_path, write_atomically
from tempbalance._saved import Count, read_saved
from tempbalance.errors import AllocationError, OutputError, check_integer, check_seed

__all__ = [
    "STATE_FILE",
    "SearchSettings",
    "Space",
    "Units",
    "evolve",
    "levels_under",
    "tokens_per_generation",
    "zeros_of",
]

STATE_FILE = "search.json"

_STAGES = ((1 / 16, 4), (1 / 4, 2), (1.0, 1))  # fraction of the text, and children that stay
_PAIRS = 3  # of units in a mutation, at most
_STEPS = (0.01, 0.02, 0.04, 0.08, 0.16)  # of the smaller of the two units

Units = tuple[int, ...]  # level of each unit: its zeros, or the place of its format
Measure = Callable[[Units, Sequence[int] | None], Sequence[float]]  # of some batches of the text, or of all


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search is over."""

    name: Literal["zeros", "levels"]  # what the levels are
    mutate: Callable[[Units, random.Random], Units]  # returns a child within the budget
    allows: Callable[[Units], bool]  # whether an allocation is one of this search and meets the budget


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How an allocation of sparsity or bits is searched.

    Attributes:
        generations: Number of generations; each makes children of the best allocation so far, and keeps the better.
        children: Children in a generation.
        tokens: Number of tokens of the calibration text that allocations are measured on.
        seed: Seed of the mutations.
        folder: Folder for the state of the search. The same search with the same folder resumes there.

    Raises:
        ArgumentError: A number is out of range.
    """

    generations: int = 100
    children: int = 12
    tokens: int = 4096
    seed: int = 0
    folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_integer("generations", self.generations, 1)
        check_integer("children", self.children, 1)
        check_integer("tokens", self.tokens, 2)
        check_seed(self.seed)
        if self.folder is not None:
            as_path("folder", self.folder)


class _State(msgspec.Struct):
    """What a search file has: what was searched, and the best allocation after some generations."""

    schema: int
    search: dict[str, str | int | float]
    generation: Count
    zeros: tuple[Count, ...] = ()
    levels: tuple[Count, ...] = ()


def tokens_per_generation(settings: SearchSettings, tokens: int) -> float:
    """Return how many tokens a generation runs through the model, at most."""
    total, left, before = 0.0, settings.children, 0.0
    for fraction, stay in _STAGES:
        total += left * (fraction - before) * tokens
        left, before = min(left, stay), fraction
    return total


def evolve(
    start: Units,
    space: Space,
    settings: SearchSettings,
    measure: Measure,
    *,
    identity: Mapping[str, str | int | float],
    advance: Callable[..., Any] = lambda *_: None,
) -> Units:
    """Return the levels of units with the smallest divergence under a budget, from a start.

    ``measure`` returns the divergence of an allocation on each of some batches of the text, or of all. ``identity`` is
    what is searched: a state of another search is refused. ``advance`` is called after every generation, with the
    number of generations and a text.

    Raises:
        AllocationError: The folder has the state of another search.
    """
    folder = None if settings.folder is None else Path(settings.folder)
    identity = {**identity, "children": settings.children, "seed": settings.seed}
    done, best = _load(folder, identity, settings, start, space)
    known = list(measure(best, None))
    first = sum(known) if best == start else sum(measure(start, None))
    advance(done, _gain(first, known))
    for generation in range(done, settings.generations):
        rng = random.Random(f"{settings.seed} {generation}")  # so that a state needs no state of a generator
        found = _generation(best, known, space, settings.children, measure, rng)
        if found is not None:
            best, known = found
        if folder is not None:
            _save(folder, identity, generation + 1, {space.name: list(best)})
        advance(1, _gain(first, known))
    return best


def _gain(first: float, known: Sequence[float]) -> str:
    return f"search, KL {first:.4g} -> {sum(known):.4g}"


def _generation(
    parent: Units, known: Sequence[float], space: Space, number: int, measure: Measure, rng: random.Random
) -> tuple[Units, list[float]] | None:
    """Return the best child, with its divergence on each batch, if it is better than its parent on all of them."""
    order = rng.sample(range(len(known)), len(known))
    children = {space.mutate(parent, rng) for _ in range(number)} - {parent}
    measured: dict[Units, list[float]] = {child: [] for child in sorted(children)}
    used = 0
    for stage, (fraction, stay) in enumerate(_STAGES):
        upto = max(1, math.ceil(fraction * len(known)))
        for child, values in measured.items():
            if upto > used:
                values.extend(measure(child, order[used:upto]))
        used = upto
        ranked = sorted(measured, key=lambda child: (sum(measured[child]), child))[:stay]
        if stage:  # a child that is behind its parent on the same text is not measured on more
            limit = sum(known[batch] for batch in order[:upto])
            ranked = [child for child in ranked if sum(measured[child]) < limit]
        measured = {child: measured[child] for child in ranked}
    for child, values in measured.items():
        return child, [value for _, value in sorted(zip(order, values, strict=True))]
    return None


def zeros_of(sizes: Sequence[int], total: int) -> Space:
    """Return the numbers of zeros of units of these sizes that add up to a total."""

    def mutate(zeros: Units, rng: random.Random) -> Units:
        """Move zeros between one to three pairs of units, the same number out of one as into the other."""
        result = list(zeros)
        if len(result) < 2:  # noqa: PLR2004
            return zeros
        for _ in range(_pairs(rng)):
            less, more = rng.sample(range(len(result)), 2)
            step = max(1, round(rng.choice(_STEPS) * min(sizes[less], sizes[more])))
            moved = min(step, result[less], sizes[more] - result[more])
            result[less] -= moved
            result[more] += moved
        return tuple(result)

    def allows(zeros: Units) -> bool:
        fits = len(zeros) == len(sizes) and all(count <= size for count, size in zip(zeros, sizes, strict=True))
        return fits and sum(zeros) == total

    return Space(name="zeros", mutate=mutate, allows=allows)


def levels_under(costs: Sequence[Sequence[int]], budget: int) -> Space:
    """Return the choices of one of the ascending costs of each unit whose sum is at most a budget."""

    def spent(levels: Sequence[int]) -> int:
        return sum(own[level] for own, level in zip(costs, levels, strict=True))

    def mutate(levels: Units, rng: random.Random) -> Units:
        """Raise one to three units by a level each, and lower others by a level until the budget is met."""
        result = list(levels)
        for _ in range(_pairs(rng)):
            higher = [unit for unit, level in enumerate(result) if level + 1 < len(costs[unit])]
            if not higher:
                break
            raised = rng.choice(higher)
            result[raised] += 1
            while spent(result) > budget:
                lower = [unit for unit, level in enumerate(result) if level and unit != raised]
                if not lower:
                    return levels
                result[rng.choice(lower)] -= 1
        return tuple(result)

    def allows(levels: Units) -> bool:
        fits = len(levels) == len(costs) and all(level < len(own) for level, own in zip(levels, costs, strict=True))
        return fits and spent(levels) <= budget

    return Space(name="levels", mutate=mutate, allows=allows)


def _pairs(rng: random.Random) -> int:
    return min(rng.randint(1, _PAIRS), rng.randint(1, _PAIRS))


def _load(
    folder: Path | None, identity: Mapping[str, Any], settings: SearchSettings, start: Units, space: Space
) -> tuple[int, Units]:
    """Return the generations that are done and the best allocation after them."""
    if folder is None or not (folder / STATE_FILE).exists():
        return 0, start
    state = read_saved(folder / STATE_FILE, _State, "a search", AllocationError)
    for name, value in identity.items():
        if state.search.get(name) != value:
            raise AllocationError(
                f"{folder} has a search with another {name} ({state.search.get(name)}, not {value}): choose another "
                "folder, or delete it"
            )
    if state.generation > settings.generations:
        raise AllocationError(f"{folder} has a search of {state.generation} generations already: ask for as many")
    best: Units = getattr(state, space.name)
    if not space.allows(best):
        raise AllocationError(f"{folder / STATE_FILE} is damaged: its {space.name} are not of the budget; delete it")
    return state.generation, best


def _save(folder: Path, identity: Mapping[str, Any], generation: int, best: Mapping[str, list[int]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    state = {"schema": 1, "search": dict(identity), "generation": generation, **best}
    write_atomically(folder / STATE_FILE, json.dumps(state).encode() + b"\n")
