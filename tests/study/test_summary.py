import json
import math
from dataclasses import replace

import pytest

from study_results import results_of
from tempbalance._files import dumps
from tempbalance.balance.assign import Fixed
from tempbalance.study.candidates import read_candidates
from tempbalance.study.summary import summarize

SEEDS = 12


def noisy(gain, spread=0.01):
    """A metric per seed: a part that depends on the seed only, and a small part that depends on the method."""
    return [0.1 * (seed % 5) + gain + spread * math.sin(7.3 * seed + 50 * gain) for seed in range(SEEDS)]


def summary_of(lower_is_better=False, **metrics):
    return summarize(results_of(**metrics), lower_is_better=lower_is_better)


class TestRecommendation:
    def test_a_better_method_is_recommended(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), tempbalance=noisy(0.05))
        assert summary.recommendation.startswith(
            "Use llr: on this task it is better than plain by 0.1 (95 % interval 0.0"
        )
        assert "12 of 12 seeds won" in summary.recommendation

    def test_a_long_content_of_a_file_is_named_by_the_file(self, tmp_path):
        Fixed({f"layers.{place}.*": 1.0 + place for place in range(12)}).save(tmp_path / "found.yaml")
        method = f"fixed:multipliers='{tmp_path}/found.yaml'"
        row = summary_of(**{"plain": noisy(0), method: noisy(0.1)}).rows[1]
        assert row.chosen.startswith("fixed:multipliers={'layers.0.*':1.0,")
        assert row.label == method
        assert replace(row, chosen=f"{row.chosen} lr=0.1").label == f"{method} lr=0.1"

    def test_if_no_method_is_better_none_is_recommended(self):
        summary = summary_of(plain=noisy(0), llr=noisy(-0.1), tempbalance=noisy(0))
        assert summary.recommendation == "No method is better than plain on this task (12 seeds)."
        assert "Worse than plain: llr." in summary.notes

    def test_a_control_is_never_recommended(self):
        assert "No method" in summary_of(plain=noisy(0), llr__uniform=noisy(0.1)).recommendation

    def test_9_seeds_are_too_few_for_a_recommendation(self):
        summary = summary_of(plain=noisy(0)[:9], llr=noisy(0.1)[:9])
        assert summary.recommendation == "9 seeds are too few to recommend a method: run 10 or more."

    def test_9_pairs_are_too_few_whatever_the_number_of_seeds(self):
        summary = summary_of(plain=noisy(0), llr=[*noisy(0.1)[:9], None, None, None])
        assert "too few" in summary.recommendation

    def test_a_method_that_diverges_more_often_is_not_recommended(self):
        summary = summary_of(plain=noisy(0), llr=[*noisy(0.1)[:11], math.nan])
        assert "No method" in summary.recommendation
        assert any("diverged" in note for note in summary.notes)

    def test_a_method_that_fails_more_often_is_not_recommended(self):
        failing = [None if seed in {3, 7} else value for seed, value in enumerate(noisy(0.1))]
        assert "No method" in summary_of(plain=noisy(0), llr=failing).recommendation
        both = [None if value is None else value - 0.1 for value in failing]
        assert "Use llr" in summary_of(plain=both, llr=failing).recommendation

    def test_with_lower_is_better_a_lower_metric_is_a_gain(self):
        summary = summary_of(lower_is_better=True, plain=noisy(0), llr=noisy(-0.1))
        assert summary.recommendation.startswith("Use llr")
        assert summary.rows[1].gain.mean == pytest.approx(0.1, abs=0.01)
        assert summary.rows[1].mean < summary.rows[0].mean

    def test_p_is_corrected_for_the_number_of_methods(self):
        weak = [value + 0.02 * (-1 if seed in (0, 1) else 0.3) for seed, value in enumerate(noisy(0, 0))]
        alone = summary_of(plain=noisy(0, 0), llr=weak).rows[1].p_value
        among = summary_of(plain=noisy(0, 0), llr=weak, tempbalance=noisy(0), alphadecay=noisy(0)).rows[1].p_value
        assert among == pytest.approx(3 * alone)


class TestControls:
    def test_a_control_that_does_as_well_is_named(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=noisy(0.1), llr__shuffled=noisy(0))
        assert summary.notes[0].endswith("the gain need not come from balancing: llr:control=uniform.")

    def test_a_note_says_that_all_controls_are_worse(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=noisy(0.05))
        assert summary.notes[0] == "It is also better than its controls: llr:control=uniform."

    @pytest.mark.parametrize(
        ("method", "control"),
        [
            ("llr", "llr:control=uniform"),
            ("llr:high=[2,3]", "llr:high=[2,3],control=uniform"),
            ("llr+snr:strength=0.1", "llr:control=uniform+snr:strength=0.1"),
        ],
    )
    def test_without_a_control_a_note_suggests_one_that_exists(self, method, control):
        names = ["plain:lr=[1,2]", method] if "[" in method else ["plain", method]
        assert read_candidates([*names, control])[2].is_control
        results = results_of(**{names[0]: noisy(0), method: noisy(0.1)})
        assert summarize(results).notes[0].endswith(f"add the control {control}.")

    def test_no_control_is_suggested_for_a_method_without_controls(self):
        assert not any("control" in note for note in summary_of(plain=noisy(0), muon=noisy(0.1)).notes)


class TestCounting:
    def test_a_diverged_trial_loses_and_the_mean_excludes_it(self):
        row = summary_of(plain=noisy(0), llr=[math.nan, *noisy(0.1)[1:]]).rows[1]
        assert (row.diverged, row.gain.lost, row.gain.won) == (1, 1, 11)
        assert row.mean == pytest.approx(sum(noisy(0.1)[1:]) / 11)
        assert math.isnan(row.gains[0])

    def test_a_failed_trial_is_excluded(self):
        summary = summary_of(plain=noisy(0), llr=[None, *noisy(0.1)[1:]], tempbalance=noisy(0.1))
        assert [row.failed for row in summary.rows] == [0, 1, 0]
        assert [row.gain.seeds for row in summary.rows[1:]] == [11, 12]
        assert 0 not in summary.rows[1].gains
        assert "1 trials failed and are excluded; delete their files to retry." in summary.notes

    def test_if_all_trials_fail_nothing_can_be_compared(self):
        summary = summary_of(plain=[None] * 3, llr=[None] * 3)
        assert summary.recommendation.startswith("Nothing can be compared")
        assert summary.rows[1].gain is None

    def test_if_all_trials_of_a_method_diverge_it_has_no_mean(self):
        summary = summary_of(plain=noisy(0), llr=[math.nan] * SEEDS)
        assert math.isnan(summary.rows[1].mean)
        assert "No method" in summary.recommendation


ODD = {"plain": noisy(0), "llr": [None, math.nan, *noisy(0.1)[2:]], "tempbalance": [None] * SEEDS}


def test_the_json_of_a_summary_has_the_gain_of_every_seed():
    data = json.loads(dumps(summary_of(**ODD).to_dict()))
    assert data["rows"][1]["gains"]["1"] is None
    assert data["rows"][1]["gain"]["won"] == 10
    assert data["rows"][2]["gain"] is None
