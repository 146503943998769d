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

    def test_a_better_method_that_cannot_be_recommended_is_named_with_the_reason(self):
        summary = summary_of(plain=noisy(0), llr=[None, *noisy(0.1)[1:]], tempbalance=noisy(0))
        assert summary.recommendation == (
            "No method can be recommended: llr is better, but it diverged or failed more often than plain."
        )
        few = summary_of(plain=noisy(0), llr=[*noisy(0.1)[:9], None, None, None], tempbalance=noisy(0))
        assert few.recommendation.endswith("llr is better, but fewer than 10 of its seeds can be compared.")

    @pytest.mark.parametrize("diverged", [9, 11, 12])
    def test_a_method_that_converges_where_the_baseline_diverges_is_recommended(self, diverged):
        plain = [math.nan] * diverged + noisy(0)[diverged:]
        summary = summary_of(plain=plain, llr=noisy(0))
        assert summary.recommendation.startswith(f"Use llr: on this task plain diverged in {diverged} trials (")
        assert not any("Worse" in note for note in summary.notes)
        assert "Worse than plain: llr." in summary_of(plain=noisy(0), llr=plain).notes

    def test_of_methods_whose_gains_are_unknown_the_one_with_the_best_mean_is_recommended(self):
        nothing = [math.nan] * SEEDS
        summary = summary_of(True, plain=nothing, llr=noisy(0), tempbalance=noisy(-0.1))
        assert summary.recommendation.startswith("Use tempbalance")

    def test_seeds_that_make_no_difference_are_no_sample(self):
        summary = summary_of(plain=[0.5] * SEEDS, llr=[0.51] * SEEDS)
        assert summary.recommendation.startswith("No method can be recommended: llr is better, but it and plain have")
        assert any(note.startswith("The seeds make no difference") for note in summary.notes)
        for metrics in ({"plain": noisy(0), "llr": [5.0] * SEEDS}, {"plain": [0.5], "llr": [0.6]}):
            assert not any(note.startswith("The seeds") for note in summary_of(**metrics).notes)

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

    @pytest.mark.parametrize("lost", [math.nan, -math.inf])
    def test_a_control_that_diverges_is_not_as_good(self, lost):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=[lost] * SEEDS)
        assert summary.notes[0] == "It is also better than its controls: llr:control=uniform."

    def test_a_control_that_failed_is_not_compared(self):
        summary = summary_of(plain=noisy(0), llr=noisy(0.1), llr__uniform=[None] * SEEDS)
        assert summary.notes[0] == "No trial of these controls finished: llr:control=uniform."
        assert not any("as good" in note or "not better" in note for note in summary.notes)

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

    @pytest.mark.parametrize("seeds", [3, SEEDS])
    def test_if_all_trials_diverge_nothing_can_be_compared(self, seeds):
        summary = summary_of(plain=[math.nan] * seeds, llr=[math.nan] * seeds)
        assert summary.recommendation == "Nothing can be compared: all trials diverged or failed."

    def test_a_note_names_methods_without_effect(self):
        note = "Equal to plain on every seed, so without effect: llr."
        assert note in summary_of(plain=noisy(0), llr=noisy(0)).notes
        assert note not in summary_of(plain=noisy(0), llr=[*noisy(0)[1:], 1.0]).notes
        assert note not in summary_of(plain=[math.nan], llr=[math.nan]).notes

    def test_a_note_counts_trials_that_diverged_by_their_validation_alone(self):
        results = results_of(plain=noisy(0), llr=noisy(0.1))
        trials = [replace(each, status="diverged", metrics={"validation": math.nan}) for each in results[1].trials]
        summary = summarize([results[0], replace(results[1], trials=trials)])
        assert not any("validation metric is" in note for note in summary.notes)
        trials = [replace(each, metrics={"test": 0.5, "validation": math.nan}) for each in trials]
        summary = summarize([results[0], replace(results[1], trials=trials)])
        assert (
            "12 diverged trials have a finite test metric: only their validation metric is not finite." in summary.notes
        )

    def test_a_note_names_methods_whose_best_rate_is_the_smallest_or_largest(self):
        names = ["plain:lr=[1,2,3]", "llr:lr=[1,2,3]", "tempbalance:lr=[2,3,4]"]
        results = results_of(**dict.fromkeys(names, noisy(0)))
        places = zip(results, (1, 2, 0), strict=True)
        chosen = [replace(each, chosen=each.candidate.configurations[place]) for each, place in places]
        note = "The best of the learning rates tried is the smallest or largest: llr lr=3, tempbalance lr=2."
        assert note in summarize(chosen).notes

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
