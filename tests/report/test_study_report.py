"""A study on the terminal and as a page."""

import io
import math

from rich.console import Console

from study_results import results_of
from tempbalance.report.study_report import print_study, render_study
from tempbalance.study.summary import summarize


def summary_of(**metrics):
    settings = {"task": "</script><img src=x>.py (0)", "seeds": 12}
    return summarize(results_of(**metrics), settings=settings)


WITH_FAILURES = {"plain": [0.5] * 12, "llr": [None, math.nan, *[0.6] * 10], "tempbalance": [None] * 12}


def printed(summary):
    console = Console(file=io.StringIO(), width=100)
    print_study(console, summary)
    return console.file.getvalue()


def test_the_table_counts_diverged_and_failed_trials():
    rows = [line.split() for line in printed(summary_of(**WITH_FAILURES)).splitlines()]
    assert rows[1][-2:] == ["diverged", "failed"]
    assert any(row[:1] == ["llr"] and row[-2:] == ["1", "1"] for row in rows)
    assert ["tempbalance", "-", "0", "12"] in rows


def test_without_diverged_or_failed_trials_the_table_has_no_column_for_them():
    assert "diverged" not in printed(summary_of(plain=[0.5] * 12, llr=[0.6] * 12)).splitlines()[1]


def test_the_page_of_a_study_loads_nothing_and_escapes_names():
    page = render_study(summary_of(**WITH_FAILURES))
    assert "<img src=x>" not in page
    assert "default-src 'none'" in page
