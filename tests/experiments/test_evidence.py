"""What follows from the runs of a study: differences, verdicts, tables, figures."""

import math
import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

METHOD = "model_balancing:normalize=true"


@pytest.fixture
def evidence(experiments):
    from evidence import compare, figure, pages, study, tables, verdict

    return {module.__name__.rpartition(".")[2]: module for module in (compare, figure, pages, study, tables, verdict)}


@pytest.fixture
def metric(evidence):
    return evidence["study"].Metric(name="accuracy", unit="points", scale=100)


@pytest.fixture
def compared(evidence, metric):
    """Makes a contest from the means of its methods, with a little noise that differs from method to method."""

    def make(means, name="16", *, seeds=12, trials=3, noise=0.002, edit=lambda run: run):
        rng = random.Random(name)
        shared = [rng.gauss(0, 0.05) for _ in range(seeds)]
        runs, rows = [], []
        for method, mean in means.items():
            for seed, luck in enumerate(shared):
                metrics = {"test": mean + luck + rng.gauss(0, noise)}
                run = {"method": method, "lr": 0.1, "seed": seed, "status": "ok", "metrics": metrics, "seconds": 1.0}
                runs.append(edit({**run, "error": ""}))
            trouble = {"diverged": 0, "failed": 0, "gain": {} if rows else None, "p_value": 0.01}
            rows.append({"method": method, "chosen": f"{method} lr=0.1", "mean": mean, **trouble})
        contest = evidence["study"].Contest(
            name=name, settings={"examples": int(name)}, methods=tuple(means), lr=(0.1,), seeds=seeds
        )
        entry = {
            "settings": {"settings": {"versions": {"torch": "2"}}, "tuning_seeds": 3},
            "summary": {"rows": rows, "seeds": seeds, "trials": trials},
            "runs": runs,
        }
        return evidence["compare"].Compared(contest, entry, metric)

    return make


@pytest.fixture
def claim(evidence):
    published = evidence["study"].Published(where="RoBERTa", size="1 %", baseline=58.49, method=68.39)
    return evidence["study"].Claim(
        name="block",
        sentence="It helps.",
        paper="A paper",
        published=(published,),
        method=METHOD,
        panels={"here": ("16", "64")},
    )


@pytest.fixture
def study(evidence, metric, claim):
    def make(*compared):
        contests = tuple(each.contest for each in compared)
        made = evidence["study"].Study(
            name="toy",
            task="x.py",
            metric=metric,
            size=("examples", "sentences"),
            claims=(claim,),
            quick=(),
            full=contests,
        )
        return made, {each.contest.name: each for each in compared}

    return make


BETTER = {"plain": 0.70, METHOD: 0.72, f"{METHOD},control=uniform": 0.70, f"{METHOD},control=shuffled": 0.69}
ALIKE = BETTER | {f"{METHOD},control=uniform": 0.72}
NOTHING = dict.fromkeys(BETTER, 0.70)
WORSE = BETTER | {METHOD: 0.68}


def test_a_gain_is_positive_where_the_first_is_better_in_points(compared):
    gain = compared(BETTER).gain(METHOD, "plain")
    assert gain.mean == pytest.approx(2, abs=0.3)
    assert gain.low < gain.mean < gain.high
    assert (gain.won, gain.seeds) == (12, 12)


def test_where_lower_is_better_less_is_a_gain_in_per_cent_of_the_baseline(compared, evidence):
    metric = evidence["study"].Metric(name="nRMSE", unit="%", lower_is_better=True, relative=True)
    gain = replace(compared({"plain": 0.5, METHOD: 0.4}), metric=metric).gain(METHOD, "plain")
    assert gain.mean == pytest.approx(20, abs=1)


def test_a_diverged_run_loses_its_pair_and_a_failed_one_has_none(compared):
    def edit(run):
        status = {("plain", 0): "failed", (METHOD, 1): "diverged"}.get((run["method"], run["seed"]), "ok")
        return run | {"status": status} | ({"metrics": {"test": None}} if status == "diverged" else {})

    gain = compared(BETTER, edit=edit).gain(METHOD, "plain")
    assert (gain.won, gain.seeds) == (10, 11)
    assert sum(map(math.isnan, gain.each)) == 1
    assert math.isfinite(gain.mean)


def test_seeds_of_the_tuning_are_not_compared(compared):
    def edit(run):
        return run | ({"seed": 1_000_000, "metrics": {"test": 9.0}} if run["seed"] == 11 else {})

    found = compared(BETTER, seeds=12, edit=edit)
    assert set(found.scores("plain")) == set(range(11))


def test_methods_and_controls_are_found_with_and_without_their_rates(compared):
    tuned = "llr:high=[3, 5],lr=[1e-3]"
    found = compared(
        {"plain:lr=[0.1,0.2]": 0.7, tuned: 0.7, "llr:high=[3,5],control=uniform": 0.7, "a+llr:control=uniform": 0}
    )
    assert found.find("plain") == "plain:lr=[0.1,0.2]"
    assert found.find("llr:high=[3,5]") == tuned
    assert found.find("llr:high=3") is None
    assert found.controls("llr:high=[3,5]") == {"uniform": "llr:high=[3,5],control=uniform"}
    assert found.controls("a+llr") == {"uniform": "a+llr:control=uniform"}


@pytest.mark.parametrize(
    ("means", "word", "outcome"),
    [
        ((BETTER, BETTER), "reproduced", "BALANCE"),
        ((BETTER, NOTHING), "partly reproduced", "BALANCE"),
        ((ALIKE, ALIKE), "partly reproduced", "GAIN"),
        ((NOTHING, NOTHING), "not reproduced", "NONE"),
        ((WORSE, NOTHING), "not reproduced", "WORSE"),
    ],
    ids=["better", "once", "controls as good", "nothing", "worse"],
)
def test_the_verdict_follows_the_rule(evidence, compared, claim, means, word, outcome):
    contests = {name: compared(each, name) for name, each in zip(("16", "64"), means, strict=True)}
    verdict = evidence["verdict"].judge(claim, contests)
    assert verdict.word == word
    assert verdict.outcomes["16"].name == outcome


@pytest.mark.parametrize(
    "options",
    [{"seeds": 9}, {"trials": 1}, {"means": {"plain": 0.70, METHOD: 0.72}}],
    ids=["too few seeds", "not tuned", "no control"],
)
def test_a_contest_that_proves_nothing_does_not_count(evidence, compared, claim, options):
    verdict = evidence["verdict"].judge(claim, {"16": compared(**{"means": BETTER} | options)})
    assert verdict.word == "open"
    assert [outcome.name for outcome in verdict.outcomes.values()] == ["UNJUDGED", "MISSING"]


def test_a_gain_that_several_contests_would_show_by_luck_does_not_count(evidence, compared, claim):
    names = [str(2**i) for i in range(4, 10)]
    claim = replace(claim, panels={"here": tuple(names)})
    lucky = {name: compared(NOTHING, name, noise=0.01) for name in names}
    lucky["16"] = compared(NOTHING | {METHOD: 0.708}, "16", noise=0.009)
    alone = evidence["verdict"].judge(replace(claim, panels={"here": ("16",)}), lucky)
    assert alone.word != "not reproduced"
    assert evidence["verdict"].judge(claim, lucky).word == "not reproduced"


def test_the_growth_of_a_gain_is_per_halving(evidence, compared, claim):
    contests = [compared({"plain": 0.7, METHOD: 0.7 + gain}, name) for name, gain in [("16", 0.04), ("64", 0.02)]]
    slope = evidence["verdict"].growth(claim, contests, "examples")
    assert slope.low < 1 < slope.high  # 2 points over two halvings
    assert slope.high - slope.low < 0.5
    assert evidence["verdict"].growth(claim, contests[:1], "examples") is None


def test_tables_have_every_method_and_every_control(evidence, compared):
    text = evidence["tables"].contest_tables(compared(BETTER))
    first, second = (part.splitlines() for part in text.split("\n\n")[1:])
    assert [line.split("`")[1] for line in first[2:]] == [*BETTER]
    assert [line.split(" | ")[1] for line in second[2:]] == ["uniform", "shuffled"]
    assert "diverged" not in text


def test_a_table_counts_what_diverged(evidence, compared):
    found = compared(BETTER)
    found.rows[1] |= {"diverged": 2, "mean": None}
    text = evidence["tables"].contest_tables(found)
    assert "| p | diverged |" in text
    assert f"| `{METHOD}` | lr 0.1 | – |" in text


def test_what_was_chosen_is_named(evidence):
    row = {"method": "a:x=2+llr:high=[3,5],low=1", "chosen": "a:x=2+llr:high=5,low=1 lr=0.1"}
    assert evidence["tables"].chosen(row) == "high 5, lr 0.1"


def test_zero_has_no_minus(evidence):
    assert evidence["tables"].signed(-1e-9, 2) == "+0.00"


def test_the_papers_numbers_stand_beside_ours(evidence, compared, claim, study):
    made, contests = study(compared(BETTER), compared(NOTHING, "64"))
    verdict = evidence["verdict"].judge(claim, contests)
    lines = evidence["tables"].published_table(made, claim, contests, verdict).splitlines()
    assert lines[2] == "| RoBERTa (paper) | 1 % | 58.49 | 68.39 | +9.90 |  |"
    assert lines[3].startswith("| here, ours | 16 | 70.00 | 72.00 | +")
    assert lines[3].endswith("gain, and better than every control |")
    assert lines[4].endswith("no gain beyond chance |")


def test_a_figure_is_svg_with_a_line_for_every_method(evidence, compared, claim, study):
    far = {f"{METHOD},control=inverted": 0.1}
    made, contests = study(compared(BETTER | far), compared(NOTHING, "64"))
    root = ET.fromstring(evidence["figure"].figure(made, claim, contests))
    space = "{http://www.w3.org/2000/svg}"
    texts = ["".join(text.itertext()) for text in root.iter(f"{space}text")]
    assert len(list(root.iter(f"{space}polyline"))) == 4
    assert texts[-4:] == [METHOD, *(f"{METHOD},control={kind}" for kind in ("uniform", "shuffled", "inverted"))]
    assert any(text.startswith("\u25bc") for text in texts)  # far below the axis
    assert {"16", "64", "sentences", "0"} <= set(texts)


def test_a_figure_of_nothing_says_so(evidence, compared, claim, study):
    made, _ = study(compared(BETTER), compared(BETTER, "64"))
    assert "not run yet" in evidence["figure"].figure(made, claim, {})


def test_a_new_page_is_filled_and_filling_it_again_changes_nothing(evidence, compared, study):
    pages = evidence["pages"]
    made, contests = study(compared(BETTER), compared(BETTER, "64"))
    page = pages.study_page(made, contests, pages.new_page(made))
    assert "**Reproduced**: a gain in 2 of 2 contests, due to balance in 2." in page
    assert pages.study_page(made, contests, page) == page
    assert "Nothing has been run yet." in pages.study_page(made, {}, page)


def test_a_page_without_markers_is_refused(evidence):
    with pytest.raises(evidence["study"].StudyError, match="<!-- begin claims -->"):
        evidence["pages"].fill("# A page\n", "claims", "text")
