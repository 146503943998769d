import dataclasses
import json
import math
import re
import sys

import pytest
import torch

import tempbalance as tb
from tempbalance.errors import MissingExtraError
from tempbalance.report.html import headline, render_html

pytest.importorskip("plotly")


def embedded(page):
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def analysis(trained):
    with torch.no_grad():
        trained[1].weight[0, 0] = math.nan
    return tb.analyze(trained)


def test_every_layer_is_in_the_page(analysis):
    data = embedded(render_html(analysis))
    assert [row["name"] for row in data["layers"]] == ["0.weight", "2.weight", "3.weight"]
    assert data["layers"][0]["alpha"] == pytest.approx(analysis.layers[0].alpha, rel=1e-4)
    assert data["skipped"] == [{"reason": "1 of 6400 weights are NaN or Inf", "names": ["1.weight"]}]


def test_a_layer_without_alpha_has_null_and_says_why(analysis):
    row = embedded(render_html(analysis))["layers"][2]
    assert row["alpha"] is None
    assert "untrained" in row["message"]


def test_nothing_is_loaded_from_anywhere(analysis):
    page = render_html(analysis)
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)\s*=|@import|url\(", markup)
    assert "default-src 'none'" in markup


def test_names_cannot_break_out(trained):
    hostile = '</script><img src=x onerror=alert(1)><!--&"'
    analysis = tb.analyze({f"{hostile}.weight": trained[0].weight.detach()})
    page = render_html(dataclasses.replace(analysis, source=hostile))
    assert "<img" not in page.partition('<script type="application/json"')[0]
    assert "<img" not in re.search(r'id="data">(.*?)</script>', page, re.S)[1]
    assert embedded(page)["layers"][0]["name"] == f"{hostile}.weight"


def test_a_7b_model_stays_under_8_mb(analysis):
    row = dataclasses.replace(
        analysis.layers[0], esd=tb.types.ESD(tuple(1.2345678 * i for i in range(1, 257)), tuple(range(256, 0, -1)))
    )
    rows = [dataclasses.replace(row, name=f"model.layers.{i // 7}.part{i % 7}.weight") for i in range(700)]
    assert len(render_html(dataclasses.replace(analysis, layers=rows)).encode()) < 8e6


def test_empty_and_zero_layers(analysis):
    assert embedded(render_html(dataclasses.replace(analysis, layers=[])))["layers"] == []
    zero = tb.analyze({"a.weight": torch.zeros(20, 20)})
    assert embedded(render_html(zero))["layers"][0]["random"] == [[], []]


def test_headline_counts_what_was_found(analysis):
    text = headline(analysis.layers)
    assert text.startswith("2 of 3 weight matrices have a tail that was fitted")
    assert "1 looks untrained, like a random matrix: 3.weight." in text


def test_headline_without_any_fit():
    zero = tb.analyze({"a.weight": torch.zeros(20, 20)})
    assert headline(zero.layers) == (
        "None of the 1 weight matrices has a tail that could be fitted. 1 could not be judged; the table says why."
    )


def test_missing_plotly_says_what_to_install(analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[report\]"):
        render_html(analysis)
