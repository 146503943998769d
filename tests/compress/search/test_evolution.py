"""The search over units: an exact budget in every generation, the same result for the same seed, and after a stop."""

import json
import random

import pytest

from tempbalance.compress.search.evolution import STATE_FILE, SearchSettings, evolve, levels_under, zeros_of
from tempbalance.errors import AllocationError, ArgumentError

SIZES = (100, 40, 1000, 7)
START = (60, 24, 600, 4)
BEST = (90, 10, 588, 0)  # 688 zeros, too


class Stop(Exception):
    """Ends a search."""


def measured(zeros, batches):
    """Distance from the best allocation, on twenty batches of different weight."""
    total = sum((a - b) ** 2 / size for a, b, size in zip(zeros, BEST, SIZES, strict=True))
    return [total * (1 + batch) for batch in (range(20) if batches is None else batches)]


def search(settings, advance=lambda *_: None, **identity):
    return evolve(
        START, zeros_of(SIZES, 688), settings, measured, identity={"budget": 688, **identity}, advance=advance
    )


def test_a_mutation_keeps_the_budget_and_the_bounds():
    rng = random.Random(0)
    zeros = START
    for _ in range(2000):
        zeros = zeros_of(SIZES, 688).mutate(zeros, rng)
        assert sum(zeros) == sum(START)
        assert all(0 <= count <= size for count, size in zip(zeros, SIZES, strict=True))


def test_a_mutation_of_levels_stays_within_the_budget_and_reaches_every_level():
    costs = [(2, 3, 4), (20, 40), (1, 5, 9, 13), (7,)]
    space, rng, levels = levels_under(costs, 45), random.Random(0), (0, 0, 0, 0)
    seen = [set() for _ in costs]
    for _ in range(500):
        levels = space.mutate(levels, rng)
        assert space.allows(levels)
        assert sum(own[level] for own, level in zip(costs, levels, strict=True)) <= 45
        for found, level in zip(seen, levels, strict=True):
            found.add(level)
    assert seen == [{0, 1, 2}, {0}, {0, 1, 2, 3}, {0}]  # 40 for the second leaves 5 for the others, which cost 10


def test_a_unit_alone_cannot_be_mutated():
    assert zeros_of((10,), 5).mutate((5,), random.Random(0)) == (5,)
    assert levels_under([(1, 2)], 1).mutate((0,), random.Random(0)) == (0,)


def test_every_generation_meets_the_budget_and_is_no_worse_than_the_one_before(tmp_path):
    states = []

    def keep(count, _):
        """Read the state after each generation."""
        if count:
            states.append(json.loads((tmp_path / STATE_FILE).read_text())["zeros"])

    found = search(SearchSettings(generations=60, folder=tmp_path), keep)
    losses = [sum(measured(zeros, None)) for zeros in (START, *states)]
    assert len(states) == 60
    assert {sum(zeros) for zeros in states} == {688}
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]
    assert list(found) == states[-1]


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    one, again, other = (search(SearchSettings(generations=5, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("done", [1, 4, 7])
def test_a_search_that_was_stopped_goes_on_to_the_same_result(tmp_path, done):
    whole = search(SearchSettings(generations=8))
    seen = []

    def stop(count, _):
        """Stop after some generations."""
        seen.append(count)
        if sum(seen) == done:
            raise Stop

    with pytest.raises(Stop):
        search(SearchSettings(generations=8, folder=tmp_path), stop)
    counts = []
    resumed = search(SearchSettings(generations=8, folder=tmp_path), lambda count, _: counts.append(count))
    assert resumed == whole
    assert counts[0] == done
    assert sum(counts) == 8


def test_a_finished_search_can_be_continued(tmp_path):
    search(SearchSettings(generations=3, folder=tmp_path))
    assert search(SearchSettings(generations=8, folder=tmp_path)) == search(SearchSettings(generations=8))
    with pytest.raises(AllocationError, match="8 generations already"):
        search(SearchSettings(generations=7, folder=tmp_path))


def test_the_folder_of_another_search_is_refused(tmp_path):
    search(SearchSettings(generations=2, folder=tmp_path), text="a")
    with pytest.raises(AllocationError, match=r"another text \(a, not b\)"):
        search(SearchSettings(generations=2, folder=tmp_path), text="b")
    with pytest.raises(AllocationError, match="another seed"):
        search(SearchSettings(generations=2, folder=tmp_path, seed=1), text="a")


def test_levels_are_searched_saved_and_checked(tmp_path):
    space = levels_under([(1, 2, 4)] * 6, 12)

    def distance(levels, batches):
        """Least for one level of 2, two of 1, and the others 0."""
        total = sum((a - b) ** 2 for a, b in zip(levels, (2, 1, 0, 0, 1, 0), strict=True))
        return [total * (1 + batch) for batch in (range(20) if batches is None else batches)]

    def run(generations, folder=None):
        """Search from the cheapest levels."""
        settings = SearchSettings(generations=generations, folder=folder)
        return evolve((0,) * 6, space, settings, distance, identity={"budget": 12})

    run(3, tmp_path)
    assert run(30, tmp_path) == run(30) == (2, 1, 0, 0, 1, 0)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    (tmp_path / STATE_FILE).write_text(json.dumps(state | {"levels": [2] * 6}))
    with pytest.raises(AllocationError, match="its levels are not of the budget"):
        run(40, tmp_path)


@pytest.mark.parametrize("zeros", [[60, 24, 600], [60, 24, 600, 5], [60, 24, 596, 8]])
def test_a_damaged_state_is_refused(tmp_path, zeros):
    search(SearchSettings(generations=1, folder=tmp_path))
    state = json.loads((tmp_path / STATE_FILE).read_text())
    (tmp_path / STATE_FILE).write_text(json.dumps(state | {"zeros": zeros}))
    with pytest.raises(AllocationError, match="damaged"):
        search(SearchSettings(generations=2, folder=tmp_path))
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(AllocationError, match="is not a search saved by tempbalance"):
        search(SearchSettings(generations=2, folder=tmp_path))


@pytest.mark.parametrize("bad", [{"generations": 0}, {"children": 0}, {"tokens": 1}, {"seed": -1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ArgumentError):
        SearchSettings(**bad)
