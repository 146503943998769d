"""From the trials of a study to gains, verdicts, tables, figures and pages."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from claims import Metric, Study
from figures import Point, forest_figure, gain_figure
from pages import experiment_page, fill, new_page
from tables import chosen, published_table, signed, study_tables
from verdict import growth, judge

from tempbalance.errors import StudyError

METHOD = "model_balancing:normalize=true"
BETTER = {"plain": 0.70, METHOD: 0.72, f"{METHOD},control=uniform": 0.70, f"{METHOD},control=shuffled": 0.69}
EQUAL_TO_CONTROL = BETTER | {f"{METHOD},control=uniform": 0.72}
EQUAL = dict.fromkeys(BETTER, 0.70)
WORSE = BETTER | {METHOD: 0.68}


def texts(svg):
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


class TestGains:
    def test_a_gain_in_points_is_positive_if_the_first_is_better(self, make_results):
        gain = make_results(BETTER).gain(METHOD, "plain")
        assert gain.mean == pytest.approx(2, abs=0.3)
        assert gain.low < gain.mean < gain.high
        assert (gain.won, gain.seeds) == (12, 12)

    def test_a_relative_gain_is_in_per_cent_of_the_baseline(self, make_results):
        metric = Metric(name="nRMSE", unit="%", lower_is_better=True, relative=True)
        gain = replace(make_results({"plain": 0.5, METHOD: 0.4}), metric=metric).gain(METHOD, "plain")
        assert gain.mean == pytest.approx(20, abs=1)

    def test_a_diverged_trial_loses_its_pair_and_a_failed_one_has_none(self, make_results):
        def edit(run):
            status = {("plain", 0): "failed", (METHOD, 1): "diverged"}.get((run["method"], run["seed"]), "ok")
            return run | {"status": status} | ({"metrics": {"test": None}} if status == "diverged" else {})

        gain = make_results(BETTER, edit=edit).gain(METHOD, "plain")
        assert (gain.won, gain.seeds) == (10, 11)
        assert sum(map(math.isnan, gain.each)) == 1
        assert math.isfinite(gain.mean)

    def test_tuning_seeds_are_not_compared(self, make_results):
        def edit(run):
            return run | ({"seed": 1_000_000, "metrics": {"test": 9.0}} if run["seed"] == 11 else {})

        assert set(make_results(BETTER, seeds=12, edit=edit).scores("plain")) == set(range(11))

    def test_methods_and_controls_are_found_with_and_without_their_rates(self, make_results):
        tuned = "llr:high=[3, 5],lr=[1e-3]"
        found = make_results(
            {"plain:lr=[0.1,0.2]": 0.7, tuned: 0.7, "llr:high=[3,5],control=uniform": 0.7, "a+llr:control=uniform": 0}
        )
        assert found.find("plain") == "plain:lr=[0.1,0.2]"
        assert found.find("llr:high=[3,5]") == tuned
        assert found.find("llr:high=3") is None
        assert found.controls("llr:high=[3,5]") == {"uniform": "llr:high=[3,5],control=uniform"}
        assert found.controls("a+llr") == {"uniform": "a+llr:control=uniform"}


class TestVerdict:
    @pytest.mark.parametrize(
        ("means", "word", "outcome", "reason"),
        [
            ((BETTER, BETTER), "reproduced", "BALANCE", "better than plain in 2 of 2 studies, better than all contro"),
            ((BETTER, EQUAL), "partly reproduced", "BALANCE", "in 1 of 2 studies, better than all controls in 1"),
            ((EQUAL_TO_CONTROL,) * 2, "partly reproduced", "GAIN", "in 2 of 2 studies, better than all controls in 0"),
            ((EQUAL, EQUAL), "not reproduced", "NONE", "better than plain in 0 of 2 studies"),
            ((WORSE, EQUAL), "not reproduced", "WORSE", "; worse than plain in 1"),
        ],
        ids=["better", "once", "controls as good", "nothing", "worse"],
    )
    def test_the_verdict_on_a_claim_follows_the_rule(self, make_results, claim, means, word, outcome, reason):
        results = {name: make_results(each, name) for name, each in zip(("16", "64"), means, strict=True)}
        verdict = judge(claim, results)
        assert verdict.word == word
        assert verdict.outcomes["16"].name == outcome
        assert reason in verdict.reason

    def test_a_question_of_our_own_is_confirmed_not_reproduced(self, make_results, claim):
        claim = replace(claim, ours=True, panels={"here": ("16",)})
        found = [judge(claim, {"16": make_results(each, "16")}).word for each in (BETTER, EQUAL_TO_CONTROL, EQUAL)]
        assert found == ["confirmed", "partly confirmed", "not confirmed"]

    @pytest.mark.parametrize(
        "options",
        [{"seeds": 9}, {"trials": 1}, {"means": {"plain": 0.70, METHOD: 0.72}}],
        ids=["too few seeds", "not tuned", "no control"],
    )
    def test_a_study_with_few_seeds_no_tuning_or_no_control_does_not_count(self, make_results, claim, options):
        verdict = judge(claim, {"16": make_results(**{"means": BETTER} | options)})
        assert verdict.word == "open"
        assert [outcome.name for outcome in verdict.outcomes.values()] == ["EXCLUDED", "MISSING"]

    def test_the_verdict_corrects_for_the_number_of_studies(self, make_results, claim):
        names = [str(2**i) for i in range(4, 10)]
        claim = replace(claim, panels={"here": tuple(names)})
        results = {name: make_results(EQUAL, name, noise=0.01) for name in names}
        results["16"] = make_results(EQUAL | {METHOD: 0.708}, "16", noise=0.009)
        assert judge(replace(claim, panels={"here": ("16",)}), results).word != "not reproduced"
        assert judge(claim, results).word == "not reproduced"

    def test_the_growth_of_a_gain_is_per_halving_of_the_data(self, make_results, claim):
        results = [
            make_results({"plain": 0.7, METHOD: 0.7 + gain}, name) for name, gain in [("16", 0.04), ("64", 0.02)]
        ]
        slope = growth(claim, results, "examples")
        assert slope.low < 1 < slope.high  # 2 points over two halvings
        assert slope.high - slope.low < 0.5
        assert growth(claim, results[:1], "examples") is None


class TestTables:
    def test_study_tables_have_every_method_and_every_control(self, make_results):
        text = study_tables(make_results(BETTER))
        first, second = (part.splitlines() for part in text.split("\n\n")[1:])
        assert [line.split("`")[1] for line in first[2:]] == [*BETTER]
        assert [line.split(" | ")[1] for line in second[2:]] == ["uniform", "shuffled"]
        assert "diverged" not in text

    def test_study_tables_count_diverged_trials(self, make_results):
        found = make_results(BETTER)
        found.rows[1] |= {"diverged": 2, "mean": None}
        text = study_tables(found)
        assert "| p | diverged |" in text
        assert f"| `{METHOD}` | lr 0.1 | – |" in text

    def test_other_test_data_have_a_table_with_the_time_of_each_method(self, make_results):
        def edit(run):
            noisy = 0.5 if run["method"] == "plain" else 0.6
            return {**run, "metrics": {**run["metrics"], "noisy": noisy}, "seconds": 1.0 if noisy == 0.5 else 3.0}

        others = [Metric(name="noise", unit="points", scale=100, key="noisy"), Metric(name="none", unit="", key="none")]
        *_, table = study_tables(make_results(BETTER, edit=edit), others).split("\n\n")
        _, _, plain, method, *_ = table.splitlines()
        assert plain == "| `plain` | 50.00 |  | 1.0 |"
        assert method == f"| `{METHOD}` | 60.00 | +10.00 (+10.00 to +10.00) | 3.0 |"

    def test_the_chosen_values_are_shown_without_the_fixed_ones(self):
        row = {"method": "a:x=2+llr:high=[3,5],low=1", "chosen": "a:x=2+llr:high=5,low=1 lr=0.1"}
        assert chosen(row) == "high 5, lr 0.1"

    def test_a_negative_number_that_rounds_to_0_has_no_minus(self):
        assert signed(-1e-9, 2) == "+0.00"

    def test_the_published_table_has_the_papers_numbers_and_ours(self, make_results, claim, make_experiment):
        experiment, results = make_experiment(make_results(BETTER), make_results(EQUAL, "64"))
        lines = published_table(experiment, claim, results, judge(claim, results).outcomes).splitlines()
        assert lines[2] == "| RoBERTa (paper) | 1 % | 58.49 | 68.39 | +9.90 |  |"
        assert lines[3].startswith("| here, ours | 16 | 70.00 | 72.00 | +")
        assert lines[3].endswith("better than the baseline and all controls |")
        assert lines[4].endswith("no significant difference |")


class TestFigures:
    def test_the_gain_figure_has_every_method_and_an_arrow_beyond_the_axis(self, make_results, claim, make_experiment):
        far = {f"{METHOD},control=inverted": 0.1}
        experiment, results = make_experiment(make_results(BETTER | far), make_results(EQUAL, "64"))
        svg = gain_figure(experiment, claim, results)
        assert svg == gain_figure(experiment, claim, results)  # the same numbers, the same file
        found = texts(svg)
        assert {METHOD, *(f"{METHOD},control={kind}" for kind in ("uniform", "shuffled", "inverted"))} <= set(found)
        assert any(text.startswith("\u25bc") for text in found)
        assert {"16", "64", "sentences", "gain over plain, points"} <= set(found)

    def test_the_gain_figure_of_a_study_that_has_not_been_run_says_so(self, make_results, claim, make_experiment):
        experiment, _ = make_experiment(make_results(BETTER), make_results(BETTER, "64"))
        assert "not run yet" in texts(gain_figure(experiment, claim, {}))

    def test_the_forest_figure_has_every_label_and_series(self):
        points = [Point("a < b", 0, 1.0, 0.5, 1.5), Point("c", 1, -2.0, -3.0, -1.0)]
        assert {"a < b", "c", "change, %", "one", "two"} <= set(
            texts(forest_figure(points, "change, %", ("one", "two")))
        )


class TestPages:
    def test_filling_a_page_twice_changes_nothing(self, make_results, make_experiment):
        experiment, results = make_experiment(make_results(BETTER), make_results(BETTER, "64"))
        page = experiment_page(experiment, results, new_page(experiment))
        assert "**Reproduced**: better than plain in 2 of 2 studies, better than all controls in 2." in page
        assert experiment_page(experiment, results, page) == page
        assert "Nothing has been run yet." in experiment_page(experiment, {}, page)

    def test_a_page_without_markers_is_refused(self):
        with pytest.raises(StudyError, match="<!-- begin claims -->"):
            fill("# A page\n", "claims", "text")


def test_a_study_name_that_cannot_be_a_folder_is_refused():
    with pytest.raises(StudyError, match="'a/b'"):
        Study(name="a/b", parameters={}, methods=(), lr=(), seeds=1)
