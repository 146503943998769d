"""A search on the terminal and as a page."""

import io
from pathlib import Path

from rich.console import Console

from tempbalance.report.figures import search_figure
from tempbalance.report.search_report import print_search, render_search
from tempbalance.study import SearchResult, SearchTrial

UNIT = "</script><img src=x>.*"


def trial(value, status="complete", **multipliers):
    origin = "sampled" if multipliers else "plain"
    return SearchTrial(
        origin=origin, lr=0.01, multipliers=multipliers, values=(value,) * (value is not None), status=status
    )


def result():
    trials = (
        trial(2.0),
        trial(1.0, **{UNIT: 0.25, "role:v": 4.0}),
        trial(1.5, **{UNIT: 0.5, "role:v": 2.0}),
        trial(None, "diverged", **{UNIT: 8.0, "role:v": 8.0}),
    )
    searched = {"lr": [0.001, 0.1], "bounds": [0.125, 8.0]}
    return SearchResult(
        best=trials[1],
        plain=trials[0],
        trials=trials,
        finalists=trials[:2],
        units={UNIT: ("a.weight",), "role:v": ("v.weight", "v.bias")},
        lower_is_better=True,
        confirmation=None,
        files=(Path("multipliers.yaml"),),
        settings={"task": "toy.py (0)", "search": searched},
    )


def test_the_table_has_the_rate_of_each_unit():
    console = Console(file=io.StringIO(), width=120)
    print_search(console, result())
    text = console.file.getvalue()
    assert "Best of 4 trials (sampled): validation 1 with base rate 0.01; plain: 2 with 0.01 (seeds of each: 1)" in text
    assert ["role:v", "2", "4", "0.04", "4", "to", "4"] in [line.split() for line in text.splitlines()]
    assert "1 of 4 trials diverged." in text
    assert "Not confirmed" in text


def test_the_page_loads_nothing_and_escapes_names():
    page = render_search(result())
    assert "<img src=x>" not in page
    assert "default-src 'none'" in page
    assert "diverged" in page


def test_the_figure_has_the_complete_trials_only():
    dots, best = search_figure(result())["data"]
    assert sorted(dots["x"]) == [0.25, 0.5, 1.0, 1.0, 2.0, 4.0]
    assert best["x"] == [4.0, 0.25]  # the first unit on top
