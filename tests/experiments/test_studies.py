"""The studies as they are committed: their pages say what their results say."""

import importlib
from pathlib import Path

import pytest

from tempbalance.study.task import load_task

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = ("digits", "text", "pde", "vision", "language")


@pytest.fixture(params=NAMES)
def study(request, experiments):
    import studies

    assert studies.NAMES == NAMES
    return studies.load_study(request.param)


def test_every_claim_is_tested_by_contests_that_have_its_methods(study):
    from evidence.compare import without

    contests = {contest.name: contest for contest in study.full}
    for claim in study.claims:
        for name in (name for panel in claim.panels.values() for name in panel):
            methods = {without(method, "lr") for method in ("plain", *contests[name].methods)}
            assert {without(method, "lr") for method in (claim.method, claim.baseline)} <= methods
            assert study.size[0] in contests[name].settings


def test_what_has_one_name_is_one_thing(study):
    contests = [*study.quick, *study.full]
    assert len({contest.name for contest in study.full}) == len(study.full)
    for contest in contests:
        assert contest.settings == next(each for each in contests if each.name == contest.name).settings
        assert contest.data is None or study.sources[contest.data]


def test_every_contest_can_be_held(study):
    from evidence.hold import count_runs

    if not (EXPERIMENTS / study.task).exists():
        pytest.skip(f"{study.task} is not there yet")
    for package in study.packages:
        pytest.importorskip(package)
    task = load_task(EXPERIMENTS / study.task)
    assert all(count_runs(contest, task) > 0 for contest in (*study.quick, *study.full))


def test_pages_and_figures_follow_from_the_results(study):
    report_study = importlib.import_module("report_study")
    if not (EXPERIMENTS / "results" / f"{study.name}.json").exists():
        pytest.skip("not run yet")
    for path, content in report_study.report(study.name).items():
        assert path.read_text("utf-8") == content, f"run: python experiments/report_study.py {study.name}"


def test_the_diagnosis_follows_from_the_results(experiments):
    for path, content in importlib.import_module("report_study").report("diagnosis").items():
        assert path.read_text("utf-8") == content, "run: python experiments/report_study.py diagnosis"


def test_the_table_of_claims_follows_from_the_results(experiments):
    for path, content in importlib.import_module("report_study").index().items():
        assert path.read_text("utf-8") == content, "run: python experiments/report_study.py digits"
