import io
import json
import math

import pytest
from rich.console import Console

from tempbalance._files import dumps
from tempbalance.report.study_page import render_summary
from tempbalance.report.study_terminal import print_summary
from tempbalance.study import read_candidates
from tempbalance.study.runner import Result
from tempbalance.study.summary import summarize
from tempbalance.study.task import Run

SEEDS = 12


def noisy(gain, spread=0.01):
    """A metric per seed: all methods share the luck of a seed, and have a little of their own."""
    return [0.1 * (seed % 5) + gain + spread * math.sin(7.3 * seed + 50 * gain) for seed in range(SEEDS)]


def results_of(**metrics):
    """Results with made-up metrics by name of the method; None is a failed run. ``__`` stands for ``:control=``."""
    names = [name.replace("__", ":control=") for name in metrics]
    found = []
    for candidate, values in zip(read_candidates(names), metrics.values(), strict=True):
        runs = [
            Run(
                method=candidate.name,
                lr=None,
                seed=seed,
                status="failed" if value is None else "ok" if math.isfinite(value) else "diverged",
                metrics={} if value is None else {"test": value},
                seconds=1.0,
            )
            for seed, value in enumerate(values)
        ]
        found.append(Result(candidate=candidate, chosen=candidate.trials[0], runs=runs))
    return found


def summary_of(lower_is_better=False, **metrics):
    return summarize(results_of(**metrics), lower_is_better=lower_is_better)


class TestRecommendation:
    def test_a_method_that_is_better_is_recommended(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), tempbalance=noisy(0.05))
        assert summary.recommendation.startswith(
            "Use llr: on this task it is better than plain by 0.1 (95 % interval 0.0"
        )
        assert "12 of 12 seeds won" in summary.recommendation

    def test_none_is_where_none_is_better(self):
        summary = summary_of(plain=noisy(0), llr=noisy(-0.1), tempbalance=noisy(0))
        assert summary.recommendation == "No method is better than plain on this task, as far as 12 seeds show."
        assert "Worse than plain: llr." in summary.notes

    def test_a_control_is_never_recommended(self):
        assert "No method" in summary_of(plain=noisy(0), llr__uniform=noisy(0.1)).recommendation

    def test_few_seeds_recommend_nothing(self):
        summary = summary_of(plain=noisy(0)[:9], llr=noisy(0.1)[:9])
        assert summary.recommendation == "9 seeds are too few to recommend anything: take 10 or more."

    def test_nor_do_few_pairs_of_many_seeds(self):
        summary = summary_of(plain=noisy(0), llr=[*noisy(0.1)[:9], None, None, None])
        assert "too few" in summary.recommendation

    def test_a_method_that_diverges_more_often_is_not_recommended(self):
        summary = summary_of(plain=noisy(0), llr=[*noisy(0.1)[:11], math.nan])
        assert "No method" in summary.recommendation
        assert any("diverged" in note for note in summary.notes)

    def test_lower_may_be_better(self):
        summary = summary_of(lower_is_better=True, plain=noisy(0), llr=noisy(-0.1))
        assert summary.recommendation.startswith("Use llr")
        assert summary.rows[1].gain.mean == pytest.approx(0.1, abs=0.01)
        assert summary.rows[1].mean < summary.rows[0].mean

    def test_many_comparisons_ask_for_more(self):
        weak = [value + 0.02 * (-1 if seed in (0, 1) else 0.3) for seed, value in enumerate(noisy(0, 0))]
        alone = summary_of(plain=noisy(0, 0), llr=weak).rows[1].p_value
        among = summary_of(plain=noisy(0, 0), llr=weak, tempbalance=noisy(0), alphadecay=noisy(0)).rows[1].p_value
        assert among == pytest.approx(3 * alone)


class TestControls:
    def test_one_that_does_as_well_is_named(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=noisy(0.1), llr__shuffled=noisy(0))
        assert summary.notes[0].endswith("the gain need not come from balance: llr:control=uniform.")

    def test_all_that_do_worse_speak_for_it(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=noisy(0.05))
        assert summary.notes[0] == "It is better than its controls, too: llr:control=uniform."

    def test_without_one_the_summary_asks_for_it(self):
        assert summary_of(plain=noisy(0), llr=noisy(0.1)).notes[0].endswith("add llr:control=uniform.")


class TestCounting:
    def test_a_diverged_run_loses_and_has_no_part_in_the_mean(self):
        row = summary_of(plain=noisy(0), llr=[math.nan, *noisy(0.1)[1:]]).rows[1]
        assert (row.diverged, row.gain.lost, row.gain.won) == (1, 1, 11)
        assert row.mean == pytest.approx(sum(noisy(0.1)[1:]) / 11)
        assert math.isnan(row.gains[0])

    def test_a_failed_run_counts_for_nobody(self):
        summary = summary_of(plain=noisy(0), llr=[None, *noisy(0.1)[1:]], tempbalance=noisy(0.1))
        assert [row.failed for row in summary.rows] == [0, 1, 0]
        assert [row.gain.seeds for row in summary.rows[1:]] == [11, 12]
        assert 0 not in summary.rows[1].gains
        assert any(note.startswith("Runs that failed (1)") for note in summary.notes)

    def test_if_all_fail_nothing_can_be_compared(self):
        summary = summary_of(plain=[None] * 3, llr=[None] * 3)
        assert summary.recommendation.startswith("Nothing can be compared")
        assert summary.rows[1].gain is None

    def test_if_all_diverge_there_is_no_mean(self):
        summary = summary_of(plain=noisy(0), llr=[math.nan] * SEEDS)
        assert math.isnan(summary.rows[1].mean)
        assert "No method" in summary.recommendation


ODD = {"plain": noisy(0), "llr": [None, math.nan, *noisy(0.1)[2:]], "tempbalance": [None] * SEEDS}


def test_the_table_has_every_method_and_what_went_wrong():
    console = Console(file=io.StringIO(), width=100)
    print_summary(console, summary_of(**ODD))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows[1][-2:] == ["diverged", "failed"]
    assert any(row[:1] == ["llr"] and row[-2:] == ["1", "1"] for row in rows)
    assert ["tempbalance", "–", "0", "12"] in rows


def test_without_trouble_there_is_no_column_for_it():
    console = Console(file=io.StringIO(), width=100)
    print_summary(console, summary_of(plain=noisy(0), llr=noisy(0.1)))
    assert "diverged" not in console.file.getvalue().splitlines()[1]


def test_the_json_has_every_seed():
    data = json.loads(dumps(summary_of(**ODD).to_json()))
    assert data["rows"][1]["gains"]["1"] is None
    assert data["rows"][1]["gain"]["won"] == 10
    assert data["rows"][2]["gain"] is None


def test_the_page_needs_no_network_and_names_cannot_break_out():
    page = render_summary(summary_of(**ODD), "</script><img src=x>.py", {"task": "</script><img src=x>"})
    assert "<img src=x>" not in page
    assert "default-src 'none'" in page
