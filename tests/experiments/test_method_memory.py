"""The table of the memory of training methods."""

import pytest

pytest.importorskip("transformers")

import method_memory


def test_the_median_of_a_method_is_divided_by_that_of_plain():
    table = method_memory.table({"plain": [200.0, 900.0, 200.0], "lora": [50.0]})
    assert table.splitlines()[2:] == ["| `plain` | 200 | 1.00 |", "| `lora` | 50 | 0.25 |"]


def test_results_are_resumed_and_written_to_a_page(tmp_path, monkeypatch):
    measured = []

    def in_a_process(method, data):
        measured.append(method)
        return 100.0

    monkeypatch.setattr(method_memory, "in_a_process", in_a_process)
    page = tmp_path / "page.md"
    page.write_text("<!-- begin memory -->\n<!-- end memory -->\n")
    for repeats in ("1", "2"):
        argv = [str(tmp_path / "memory.json"), "--repeats", repeats, "--methods", "plain", "lora", "--page", str(page)]
        method_memory.main(argv)
    assert measured == ["plain", "lora"] * 2
    assert "| `lora` | 100 | 1.00 |" in page.read_text()
