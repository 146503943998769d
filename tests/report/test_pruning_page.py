import dataclasses
import io
import json
import math
import re
import sys

import pytest
from rich.console import Console

import tempbalance as tb
from tempbalance.errors import MissingExtraError
from tempbalance.report.pruning_page import headline, render_pruning
from tempbalance.report.pruning_terminal import print_pruning


def share(block, part, zeros, alpha):
    """A weight of 100 entries."""
    return tb.compress.LayerAllocation(
        name=f"h.{block}.{part}.weight",
        unit=f"h.{block}",
        shape=(10, 10),
        alpha=alpha,
        stderr=0.3,
        zeros=zeros,
    )


def pruned_model(blocks=3, **changes):
    """Blocks of two weights, pruned as planned, the first least; the last weight has no alpha."""
    layers = [share(i, part, 30 + i, 2.0 + i) for i in range(blocks) for part in ("up", "down")]
    layers[-1] = dataclasses.replace(layers[-1], alpha=math.nan, stderr=math.nan)
    plan = tb.Allocation(
        source="some/model",
        budget=0.31,
        method="alpha, epsilon 0.3",
        unit="block",
        layers=tuple(layers),
        settings={"estimator": "Hill()"},
    )
    return tb.compress.PruningResult(allocation=plan, method="wanda", achieved=dict(plan), **changes)


MEASURED = (
    tb.compress.Perplexity(value=7.6764, stderr=0.1832, tokens=5000, windows=20),
    tb.compress.Perplexity(value=9.1, stderr=math.nan, tokens=5000, windows=20),
)


def printed(pruned):
    stream = io.StringIO()
    print_pruning(Console(file=stream, width=80), pruned)
    return stream.getvalue()


def embedded(page):
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


class TestTerminal:
    def test_every_block_has_a_line(self):
        lines = printed(pruned_model()).splitlines()
        assert lines[1] == "6 weight matrices pruned by wanda; allocation by alpha, epsilon 0.3"
        assert [line.split()[:5] for line in lines[3:6]] == [
            ["h.0", "2.00", "0.21", "30.0%", "30.0%"],
            ["h.1", "3.00", "0.21", "31.0%", "31.0%"],
            ["h.2", "4.00", "0.30", "32.0%", "32.0%"],
        ]
        assert lines[6] == "186 of 600 weights are zero: 31.0%"
        assert len(lines) == 7  # no perplexity

    def test_perplexity_has_its_standard_error(self):
        last = printed(pruned_model(perplexity=MEASURED)).splitlines()[-1]
        assert last == "perplexity 7.676 (standard error 0.18) before, 9.1 (standard error unknown) after"

    def test_a_block_without_alpha(self):
        pruned = pruned_model()
        plan = dataclasses.replace(
            pruned.allocation,
            layers=[dataclasses.replace(s, alpha=math.nan, stderr=math.nan) for s in pruned.allocation.layers],
        )
        assert "h.0 - - 30.0%" in " ".join(printed(dataclasses.replace(pruned, allocation=plan)).split())

    def test_a_bar_is_as_long_as_the_block_is_sparse(self):
        pruned = dataclasses.replace(pruned_model(blocks=1), achieved={"h.0.up.weight": 1.0, "h.0.down.weight": 0.5})
        assert printed(pruned).count("█") == 15

    def test_groups_are_named(self):
        pruned = pruned_model()
        pruned = dataclasses.replace(pruned, allocation=dataclasses.replace(pruned.allocation, group=8))
        assert "in groups of 8" in " ".join(printed(pruned).split())

    def test_of_many_blocks_those_that_stand_out_are_shown(self):
        pruned = pruned_model(blocks=50)
        pruned = dataclasses.replace(pruned, achieved={**pruned.achieved, "h.25.up.weight": 0.6})
        text = printed(pruned)
        shown = [int(block) for block in re.findall(r"^h\.(\d+) ", text, re.M)]
        assert shown == [0, 1, 2, 3, 25, 46, 47, 48, 49]
        assert "41 others not shown" in text

    def test_forty_blocks_are_shown(self):
        assert len(re.findall(r"^h\.\d+ ", printed(pruned_model(blocks=40)), re.M)) == 40


class TestPage:
    @pytest.fixture(autouse=True)
    def _plotly(self):
        pytest.importorskip("plotly")

    def test_every_weight_and_block_is_in_the_page(self):
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

    def test_how_it_was_made_is_in_the_page(self):
        settings = embedded(render_pruning(pruned_model(calibration={"samples": 4, "seed": 7})))["settings"]
        assert settings == {
            "pruning criterion": "wanda",
            "allocation": "alpha, epsilon 0.3",
            "calibration, samples": "4",
            "calibration, seed": "7",
            "estimator": "Hill()",
        }

    def test_nothing_is_loaded_from_anywhere(self):
        page = render_pruning(pruned_model())
        markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert not re.search(r"(src|href)\s*=|@import|url\(", markup)
        assert "default-src 'none'" in markup

    def test_names_cannot_break_out(self):
        hostile = '</script><img src=x onerror=alert(1)><!--&"'
        pruned = pruned_model()
        plan = dataclasses.replace(
            pruned.allocation,
            source=hostile,
            layers=[dataclasses.replace(pruned.allocation.layers[0], name=hostile, unit=hostile)],
        )
        page = render_pruning(dataclasses.replace(pruned, allocation=plan, achieved={hostile: 0.3}))
        assert "<img" not in page.partition('<script type="application/json"')[0]
        assert "<img" not in re.search(r'id="data">(.*?)</script>', page, re.S)[1]
        assert embedded(page)["layers"][0]["name"] == hostile

    def test_missing_plotly_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "plotly.offline", None)
        with pytest.raises(MissingExtraError, match=r"tempbalance\[report\]"):
            render_pruning(pruned_model())


def test_headline_says_what_was_done_and_what_it_cost():
    assert headline(pruned_model(perplexity=MEASURED)) == (
        "186 of 600 weights are zero: 31.0%, target 31.0%. It ranges from 30.0% in h.0 to 32.0% in h.2. "
        "Perplexity was 7.676 (standard error 0.18) before and is 9.1 (standard error unknown) after pruning."
    )


def test_headline_of_one_block():
    assert headline(pruned_model(blocks=1)) == "60 of 200 weights are zero: 30.0%, target 31.0%."


def test_an_infinite_perplexity_is_said():
    assert str(tb.compress.Perplexity(value=math.inf, stderr=math.nan, tokens=1, windows=1)).startswith("inf ")
