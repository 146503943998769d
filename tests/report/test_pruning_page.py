"""The HTML page of a pruned model."""

import dataclasses
import json
import math
import re
import sys

import pytest

import tempbalance as tb
from pruned_models import MEASURED, pruned_model
from tempbalance.errors import MissingExtraError
from tempbalance.report.pruning_page import headline, render_pruning


def embedded(page):
    """Return the data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


class TestPruningPage:
    @pytest.fixture(autouse=True)
    def _plotly(self):
        pytest.importorskip("plotly")

    def test_the_page_has_every_weight_and_block(self):
        data = embedded(render_pruning(pruned_model(perplexity=MEASURED)))
        assert data["layers"][2] == {
            "name": "h.1.up.weight",
            "unit": "h.1",
            "shape": [10, 10],
            "alpha": 3.0,
            "stderr": 0.3,
            "planned": 0.31,
            "achieved": 0.31,
        }
        assert data["layers"][-1]["alpha"] is None
        assert [unit["name"] for unit in data["units"]] == ["h.0", "h.1", "h.2"]
        assert data["perplexity"]["before"] == {"value": 7.6764, "stderr": 0.1832, "tokens": 5000}
        assert data["perplexity"]["after"]["stderr"] is None

    def test_the_page_has_the_settings(self):
        settings = embedded(render_pruning(pruned_model(calibration={"samples": 4, "seed": 7})))["settings"]
        assert settings == {
            "pruning criterion": "wanda",
            "allocation": "alpha, epsilon 0.3",
            "calibration, samples": "4",
            "calibration, seed": "7",
            "estimator": "Hill()",
        }

    def test_the_page_loads_no_other_file(self):
        page = render_pruning(pruned_model())
        markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert not re.search(r"(src|href)\s*=|@import|url\(", markup)
        assert "default-src 'none'" in markup

    def test_hostile_names_are_escaped(self):
        hostile = '</script><img src=x onerror=alert(1)><!--&"'
        pruned = pruned_model()
        allocation = dataclasses.replace(
            pruned.allocation,
            source=hostile,
            layers=[dataclasses.replace(pruned.allocation.layers[0], name=hostile, unit=hostile)],
        )
        page = render_pruning(dataclasses.replace(pruned, allocation=allocation, achieved={hostile: 0.3}))
        assert "<img" not in page.partition('<script type="application/json"')[0]
        assert "<img" not in re.search(r'id="data">(.*?)</script>', page, re.S)[1]
        assert embedded(page)["layers"][0]["name"] == hostile

    def test_without_plotly_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "plotly.offline", None)
        with pytest.raises(MissingExtraError, match=r"tempbalance\[report\]"):
            render_pruning(pruned_model())


def test_the_headline_has_the_sparsities_and_perplexities():
    assert headline(pruned_model(perplexity=MEASURED)) == (
        "186 of 600 weights are zero: 31.0%, target 31.0%. It ranges from 30.0% in h.0 to 32.0% in h.2. "
        "Perplexity was 7.676 (standard error 0.18) before and is 9.1 (standard error unknown) after pruning."
    )


def test_the_headline_of_one_block_has_no_range():
    assert headline(pruned_model(blocks=1)) == "60 of 200 weights are zero: 30.0%, target 31.0%."


def test_an_infinite_perplexity_is_written_as_inf():
    assert str(tb.compress.Perplexity(value=math.inf, stderr=math.nan, tokens=1, windows=1)).startswith("inf ")
