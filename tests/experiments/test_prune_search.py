"""The report on searched allocations, from made-up losses."""

import json
import math

import pytest

pytest.importorskip("transformers")

import prune_search

METHODS = {"uniform": 2.0, "owl": 1.9, "search_layer": 1.7}


@pytest.fixture
def results():
    cells = {}
    for pruner in ("magnitude", "wanda"):
        for method, loss in METHODS.items():
            worse = 0.5 if (pruner, method) == ("wanda", "search_layer") else 0.0
            losses = [loss + worse + 0.1 * segment + 0.001 * (-1) ** segment for segment in range(8)]
            cells[f"tiny|{pruner}|0.5|{method}"] = {"losses": losses}
    return {"settings": prune_search.SETTINGS, "dense": {"tiny": [math.log(3)] * 8}, "cells": cells}


def test_allocations_are_counted_against_uniform_and_owl(results):
    *_, searched = prune_search.report(results)["cells"].splitlines()
    assert searched == "| search, per matrix | 2 | 1 | 1 | 1 | 1 |"


def test_the_tables_have_perplexities_and_changes(results):
    text = prune_search.report(results)["tiny"]
    assert text.startswith("Before pruning 3.0.")
    change = 100 * math.expm1(-0.3)
    assert f"{change:+.1f} %".replace("-", "−") in text.partition("Against OWL")[0]


def test_the_page_and_the_file_have_all_of_it(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in ("cells", "tiny")))
    prune_search.write_page(page, results)
    assert "| search, per matrix | 2 |" in page.read_text(encoding="utf-8")
    assert (tmp_path / "prune_search_tiny.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert json.loads(prune_search.content_of(results)) == results
