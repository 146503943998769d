"""The page "What helps": from studies to findings, a table and a figure."""

import xml.etree.ElementTree as ET

import pytest
import what_helps
from claims import TaskRow

METHOD = "mup"
BETTER = {"plain": 0.70, METHOD: 0.72, f"{METHOD}:control=uniform": 0.70}


@pytest.fixture
def row(make_results):
    """Makes a row of the page from the means of the methods."""

    def make(means, pretrained=False, p_value=0.01):
        results = make_results(means)
        task = TaskRow(title="Toy", study=results.study, methods={"shape (muP)": METHOD}, pretrained=pretrained)
        gain = results.gain(METHOD, "plain")
        return what_helps.Row(
            task, results, {"shape (muP)": what_helps.Cell(gain, what_helps.find(results, METHOD, gain, p_value))}
        )

    return make


@pytest.mark.parametrize(
    ("means", "p_value", "finding"),
    [
        (BETTER, 0.01, "HELPS"),
        (BETTER | {f"{METHOD}:control=uniform": 0.72}, 0.01, "CONTROL"),
        ({"plain": 0.70, METHOD: 0.72}, 0.01, "UNCONTROLLED"),
        (BETTER | {METHOD: 0.70}, 0.01, "NONE"),
        (BETTER, 0.06, "NONE"),
        (BETTER | {METHOD: 0.68}, 0.01, "WORSE"),
    ],
    ids=["better", "control as good", "no control", "equal", "not significant after correction", "worse"],
)
def test_the_finding_follows_the_rule(row, means, p_value, finding):
    assert row(means, p_value=p_value).cells["shape (muP)"].finding.name == finding


def test_the_page_has_a_table_per_kind_of_training(row):
    text = what_helps.page(
        [row(BETTER), row(BETTER, pretrained=True)], "<!-- begin table -->\nold\n<!-- end table -->\n"
    )
    assert "old" not in text
    scratch, tuned = text.index("**Training from scratch**"), text.index("**Fine-tuning**")
    assert scratch < tuned
    assert text.count("| Toy | shape (muP) | 70.00 accuracy | +") == 2
    assert text.count("better than plain and than each control") == 2


def test_the_figure_names_tasks_candidates_and_findings(row):
    svg = ET.fromstring(what_helps.figure([row(BETTER)]))
    shown = {"".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Toy", "(points)", "shape (muP)", "better than plain and than each control"} <= shown


def test_without_results_the_page_says_so():
    assert "Nothing has been run yet." in what_helps.page([], "<!-- begin table -->\n<!-- end table -->\n")
