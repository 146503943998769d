"""The page of all training methods: from studies to a table and a figure."""

import xml.etree.ElementTree as ET

import methods_page
import pytest

DIGITS = {"plain": 0.90, "snr": 0.93, "spd": 0.90, "probe:c=[1,10],lr=1e-2": 0.80}
SST2 = {"plain": 0.70, "spd:strength=[0.1,1]": 0.75, "muon": 0.70, "muon:variant=2": 0.60, "muon:control=uniform": 0.60}


@pytest.fixture
def rows(make_results, monkeypatch):
    digits, sst2 = make_results(DIGITS), make_results(SST2, seeds=14)
    for found, factor in ((digits, {"snr": 3}), (sst2, {"spd:strength=[0.1,1]": 2})):
        for run in found.entry["runs"]:
            run["seconds"] *= factor.get(run["method"], 1)
            run["metrics"] |= dict.fromkeys(("noisy", "rotated", "shifted"), run["metrics"]["test"])
    found = {"digits": {"8-methods": digits}, "text": {"sst2-64-mean": sst2}}
    monkeypatch.setattr(methods_page, "load_results", lambda experiment, _: found[experiment.name])
    return methods_page.load_rows(None)


def test_a_method_of_two_studies_is_one_row(rows):
    assert [row.name for row in rows] == ["snr", "spd", "muon", "probe"]  # by gain
    spd = rows[1]
    assert list(spd.cells) == ["digits", "digits with noise", "digits, rotated", "SST-2"]
    assert spd.cells["SST-2"].gain.mean == pytest.approx(5, abs=0.5)


def test_of_several_variants_the_first_is_shown_and_no_control(rows):
    assert rows[2].cells["SST-2"].gain.mean == pytest.approx(0, abs=0.5)


def test_the_table_marks_what_is_better_and_has_time_and_memory(rows):
    text = methods_page.page(rows, "<!-- begin table -->\nold\n<!-- end table -->\n")
    assert "old" not in text
    lines = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]] for line in text.splitlines()[4:8]
    }
    assert lines["`snr`"][0].startswith("**+3.")
    assert lines["`snr`"][3:5] == ["", "3.0"]
    assert lines["`spd`"][3].startswith("**+5.")
    assert lines["`spd`"][4] == "2.0"  # on text
    assert lines["`probe`"][0].startswith("-10.")
    assert float(lines["`spd`"][5]) > 1  # memory


def test_the_figure_names_methods_tests_and_findings(rows):
    svg = ET.fromstring(methods_page.figure(rows))
    shown = {"".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"snr", "SST-2", "better than plain, no control", "worse than plain"} <= shown
