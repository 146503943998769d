"""Evolutionary search over the numbers of zeros of units: exact budget, staged selection, resumable."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tempbalance._files import as_path, write_atomically
from tempbalance._saved import Count, read_saved
from tempbalance.errors import AllocationError, OutputError, check_integer, check_seed

__all__ = ["STATE_FILE", "SearchSettings", "evolve", "tokens_per_generation"]

STATE_FILE = "search.json"

_STAGES = ((1 / 16, 4), (1 / 4, 2), (1.0, 1))  # fraction of the text, and children that stay
_PAIRS = 3  # of units in a mutation, at most
_STEPS = (0.01, 0.02, 0.04, 0.08, 0.16)  # of the smaller of the two units

Units = tuple[int, ...]  # zeros of each unit
Measure = Callable[[Units, Sequence[int] | None], Sequence[float]]  # of some batches of the text, or of all


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How an allocation of sparsity is searched.

    Attributes:
        generations: Number of generations; each makes children of the best allocation so far, and keeps the better.
        children: Children in a generation.
        tokens: Number of tokens of the calibration text that allocations are measured on.
        seed: Seed of the mutations.
        folder: Folder for the state of the search. The same search with the same folder resumes there.

    Raises:
        ArgumentError: A number is out of range.
    """

    generations: int = 150
    children: int = 12
    tokens: int = 8192
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
    zeros: tuple[Count, ...]


def tokens_per_generation(settings: SearchSettings, tokens: int) -> float:
    """Return how many tokens a generation runs through the model, at most."""
    total, left, before = 0.0, settings.children, 0.0
    for fraction, stay in _STAGES:
        total += left * (fraction - before) * tokens
        left, before = min(left, stay), fraction
    return total


def evolve(
    start: Units,
    sizes: Sequence[int],
    settings: SearchSettings,
    measure: Measure,
    *,
    identity: Mapping[str, str | int | float],
    advance: Callable[..., Any] = lambda *_: None,
) -> Units:
    """Search the numbers of zeros of units with the smallest divergence; their sum stays that of the start.

    Args:
        start: Zeros of each unit.
        sizes: Number of weights of each unit.
        settings: Settings.
        measure: Returns the divergence of an allocation on each of some batches of the text, or of all.
        identity: What is searched; a state of another search is refused.
        advance: Called after every generation, with the number of generations and a text.

    Returns:
        The zeros of each unit.

    Raises:
        AllocationError: The folder has the state of another search.
    """
    folder = None if settings.folder is None else Path(settings.folder)
    identity = {**identity, "children": settings.children, "seed": settings.seed}
    done, best = _load(folder, identity, settings, start, sizes)
    first = sum(measure(start, None))
    known = list(measure(best, None))
    advance(done, _gain(first, known))
    for generation in range(done, settings.generations):
        rng = random.Random(f"{settings.seed} {generation}")  # so that a state needs no state of a generator
        found = _generation(best, known, sizes, settings.children, measure, rng)
        if found is not None:
            best, known = found
        if folder is not None:
            _save(folder, identity, generation + 1, best)
        advance(1, _gain(first, known))
    return best


def _gain(first: float, known: Sequence[float]) -> str:
    return f"search, KL {first:.4g} -> {sum(known):.4g}"


def _generation(
    parent: Units,
    known: Sequence[float],
    sizes: Sequence[int],
    number: int,
    measure: Measure,
    rng: random.Random,
) -> tuple[Units, list[float]] | None:
    """Return the best child, with its divergence on each batch, if it is better than its parent on all of them."""
    order = rng.sample(range(len(known)), len(known))
    children = {mutate(parent, sizes, rng) for _ in range(number)} - {parent}
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


def mutate(zeros: Units, sizes: Sequence[int], rng: random.Random) -> Units:
    """Move zeros between one to three pairs of units, the same number out of one as into the other."""
    result = list(zeros)
    if len(result) < 2:  # noqa: PLR2004
        return zeros
    for _ in range(min(rng.randint(1, _PAIRS), rng.randint(1, _PAIRS))):
        less, more = rng.sample(range(len(result)), 2)
        step = max(1, round(rng.choice(_STEPS) * min(sizes[less], sizes[more])))
        moved = min(step, result[less], sizes[more] - result[more])
        result[less] -= moved
        result[more] += moved
    return tuple(result)


def _load(
    folder: Path | None, identity: Mapping[str, Any], settings: SearchSettings, start: Units, sizes: Sequence[int]
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
    fits = len(state.zeros) == len(sizes) and all(zeros <= size for zeros, size in zip(state.zeros, sizes, strict=True))
    if not fits or sum(state.zeros) != sum(start):
        raise AllocationError(f"{folder / STATE_FILE} is damaged: its zeros are not those of the budget; delete it")
    return state.generation, state.zeros


def _save(folder: Path, identity: Mapping[str, Any], generation: int, zeros: Units) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    state = {"schema": 1, "search": dict(identity), "generation": generation, "zeros": list(zeros)}
    write_atomically(folder / STATE_FILE, json.dumps(state).encode() + b"\n")
