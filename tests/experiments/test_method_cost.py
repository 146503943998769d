"""The table of time and memory of training methods."""

import pytest

pytest.importorskip("transformers")

import method_cost


def test_the_medians_of_a_method_are_divided_by_those_of_plain():
    plain = [{"seconds": seconds, "megabytes": 200.0} for seconds in (2.0, 90.0, 2.0)]
    rows = {"plain": plain, "lora": [{"seconds": 1.0, "megabytes": 50.0}]}
    assert method_cost.table(rows).splitlines()[2:] == [
        "| `plain` | 1.00 | 200 | 1.00 |",
        "| `lora` | 0.50 | 50 | 0.25 |",
    ]


def test_results_are_resumed_and_written_to_a_page(tmp_path, monkeypatch):
    measured = []

    def in_a_process(method, data):
        measured.append(method)
        return {"seconds": 1.0, "megabytes": 100.0}

    monkeypatch.setattr(method_cost, "in_a_process", in_a_process)
    page = tmp_path / "page.md"
    page.write_text("<!-- begin cost -->\n<!-- end cost -->\n")
    for repeats in ("1", "2"):
        argv = [str(tmp_path / "cost.json"), "--repeats", repeats, "--methods", "plain", "lora", "--page", str(page)]
        method_cost.main(argv)
    assert measured == ["plain", "lora"] * 2
    assert "| `lora` | 1.00 | 100 | 1.00 |" in page.read_text()
