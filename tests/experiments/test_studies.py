"""The experiments as committed: their studies are valid, and their pages follow from their results."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from gains import without
from report_study import index, report
from run_study import HERE
from studies import NAMES, load_experiment

from tempbalance.study import count_trials


@pytest.fixture(params=NAMES)
def experiment(request):
    return load_experiment(request.param)


def check(files: dict[Path, str], name: str) -> None:
    """The files are as they are made from the results; of an SVG by another matplotlib, only its texts are compared."""
    for path, content in files.items():
        pair = [path.read_text("utf-8"), content]
        if path.suffix == ".svg" and f"Matplotlib v{mpl.__version__}," not in pair[0]:
            pair = ["".join(re.findall(r"<text[^>]*>(.*?)</text>", svg)) for svg in pair]
        assert pair[0] == pair[1], f"run: python experiments/report_study.py {name}"


def test_every_claim_is_tested_by_studies_with_its_methods(experiment):
    studies = {study.name: study for study in experiment.full}
    for claim in experiment.claims:
        for name in claim.studies:
            methods = {without(method, "lr") for method in ("plain", *studies[name].methods)}
            assert {without(method, "lr") for method in (claim.method, claim.baseline)} <= methods
            assert experiment.size[0] in studies[name].parameters


def test_studies_of_one_name_have_the_same_parameters(experiment):
    studies = [*experiment.quick, *experiment.full]
    assert len({study.name for study in experiment.full}) == len(experiment.full)
    for study in studies:
        assert study.parameters == next(each for each in studies if each.name == study.name).parameters
        assert study.data is None or experiment.sources[study.data]


def test_every_study_can_be_run(experiment):
    for package in experiment.packages:
        pytest.importorskip(package)
    for study in (*experiment.quick, *experiment.full):
        options = {"seeds": study.seeds, "lr": study.lr, "tuning_seeds": study.tuning_seeds}
        assert count_trials(HERE / experiment.task, study.methods, **options) > 0


def test_pages_and_figures_follow_from_the_results(experiment):
    check(report(experiment.name), experiment.name)


def test_the_diagnosis_and_the_table_of_claims_follow_from_the_results():
    check({**report("diagnosis"), **index()}, "diagnosis")
