"""The HTML page and the table of a pruned model."""

import dataclasses
import html
import io
import json
import math
import re

from rich.console import Console

import tempbalance as tb
from pruned_models import MEASURED, pruned_model
from tempbalance.report.pruning_report import headline, print_pruning, render_pruning


def embedded(page):
    """Return the data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


class TestPruningPage:
    def test_the_page_has_every_weight_and_block(self):
        page = render_pruning(pruned_model(perplexity=MEASURED))
        rows = re.findall(r'<tr data-index="\d">(.*?)</tr>', page)
        table = [re.findall("<td.*?>(.*?)</td>", row) for row in rows]
        assert table[0] == ["before", "7.676", "0.183", "5000"]
        assert table[1][2] == "–"  # unknown
        assert table[4] == ["h.1.up.weight", "10x10", "3.00", "0.30", "0.3100", "0.3100"]
        assert table[-1][2] == "–"  # no alpha
        figures = embedded(page)["figures"]
        assert [trace["name"] for trace in figures["sparsity"]["data"]] == ["up", "down", "planned, by block"]
        assert figures["sparsity"]["data"][-1]["y"] == [0.3, 0.31, 0.32]

    def test_the_page_has_the_settings(self):
        page = render_pruning(pruned_model(calibration={"samples": 4, "seed": 7}))
        settings = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.partition('<dl id="settings">')[2])
        assert dict(settings) == {
            "pruning criterion": "wanda",
            "allocation": "alpha, epsilon 0.3",
            "calibration, samples": "4",
            "calibration, seed": "7",
            "estimator": "Hill",
        }

    def test_the_page_loads_no_other_file(self):
        page = render_pruning(pruned_model())
        markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert not re.search(r"(src|href)\s*=|@import|url\(", markup)
        assert "default-src 'none'" in markup

    def test_hostile_names_of_weights_are_escaped(self):
        hostile = '</script><img src=x onerror=alert(1)><!--&"'
        pruned = pruned_model()
        allocation = dataclasses.replace(
            pruned.allocation,
            source=hostile,
            layers=[dataclasses.replace(pruned.allocation.layers[0], name=hostile, unit=hostile)],
        )
        page = render_pruning(dataclasses.replace(pruned, allocation=allocation, achieved={hostile: 0.3}))
        assert "<img" not in page
        text = embedded(page)["figures"]["alpha"]["data"][0]["text"][0]
        assert text.startswith(html.escape(hostile, quote=False))


def test_the_headline_has_the_sparsities_and_perplexities():
    assert headline(pruned_model(perplexity=MEASURED)) == (
        "186 of 600 weights are zero: 31.0%, target 31.0%. It ranges from 30.0% in h.0 to 32.0% in h.2. "
        "Perplexity was 7.676 (standard error 0.18) before and is 9.1 (standard error unknown) after pruning."
    )


def test_findings_of_the_allocation_are_in_every_output():
    pruned = pruned_model()
    layers = tuple(dataclasses.replace(layer, stderr=9.0) for layer in pruned.allocation.layers)
    noisy = dataclasses.replace(pruned, allocation=dataclasses.replace(pruned.allocation, layers=layers))
    assert "so the allocation follows noise" in render_pruning(noisy)
    assert "[noise]" in printed(noisy)
    assert [finding["kind"] for finding in noisy.to_dict()["findings"]] == ["noise"]
    assert pruned.to_dict()["findings"] == []


def test_the_headline_of_one_block_has_no_range():
    assert headline(pruned_model(blocks=1)) == "60 of 200 weights are zero: 30.0%, target 31.0%."


def test_the_zeros_of_all_parameters_are_given_if_their_number_is_known():
    pruned = pruned_model()
    size = tb.types.ModelSize(parameters=1_000, weights=600, block_weights=600)
    pruned = dataclasses.replace(pruned, allocation=dataclasses.replace(pruned.allocation, size=size))
    assert "These are 18.6% of all 1,000 parameters." in headline(pruned)
    assert "186 of 600 weights are zero: 31.0%, 18.6% of all 1,000 parameters" in printed(pruned)
    missed = dataclasses.replace(pruned, allocation=dataclasses.replace(pruned.allocation, budget=0.3))
    assert "186 of 600 weights are zero: 31.0% (target 30.0%), 18.6%" in printed(missed)
    assert (pruned.to_dict()["parameters"], pruned.to_dict()["zeros_of_all"]) == (1_000, 0.186)


def test_an_infinite_perplexity_is_written_as_inf():
    assert str(tb.compress.Perplexity(value=math.inf, stderr=math.nan, tokens=1, windows=1)).startswith("inf ")


def printed(pruned):
    stream = io.StringIO()
    print_pruning(Console(file=stream, width=80), pruned)
    return stream.getvalue()


def test_what_each_method_gives_on_the_text_is_in_every_output():
    pruned = pruned_model()
    assert "calibration text" not in printed(pruned)
    assert pruned.to_dict()["compared"] == []
    scores = (("search", 1.25, 20.5), ("owl, epsilon 0.08", math.inf, math.inf))
    compared = tuple(tb.compress.MethodScore(method=name, kl=kl, perplexity=value) for name, kl, value in scores)
    allocation = dataclasses.replace(pruned.allocation, compared=compared, estimate="search: at most 9 min")
    pruned = dataclasses.replace(pruned, allocation=allocation)
    lines = printed(pruned).splitlines()
    assert [line.split() for line in lines if line.startswith(("search", "owl"))] == [
        ["search", "1.2500", "20.5"],
        ["owl,", "epsilon", "0.08", "inf", "inf"],
    ]
    page = render_pruning(pruned)
    assert '<td class="text">search</td>' in page.partition('<table id="compared">')[2]
    assert all("search: at most 9 min" in text for text in (page, printed(pruned), pruned.to_dict()["estimate"]))
    assert pruned.to_dict()["compared"][1] == {"method": "owl, epsilon 0.08", "kl": None, "perplexity": None}


def test_every_block_of_a_pruned_model_has_a_line():
    lines = printed(pruned_model()).splitlines()
    assert lines[1] == "6 weight matrices pruned by wanda; allocation by alpha, epsilon 0.3"
    assert [line.split()[:5] for line in lines[3:6]] == [
        ["h.0", "2.00", "0.21", "30.0%", "30.0%"],
        ["h.1", "3.00", "0.21", "31.0%", "31.0%"],
        ["h.2", "4.00", "0.30", "32.0%", "32.0%"],
    ]
    assert lines[6] == "186 of 600 weights are zero: 31.0%"
    assert len(lines) == 7  # no perplexity


def test_perplexities_are_printed_with_their_standard_errors():
    last = printed(pruned_model(perplexity=MEASURED)).splitlines()[-1]
    assert last == "perplexity 7.676 (standard error 0.18) before, 9.1 (standard error unknown) after"


def test_a_missing_alpha_is_printed_as_a_dash():
    pruned = pruned_model()
    allocation = dataclasses.replace(
        pruned.allocation,
        layers=[dataclasses.replace(s, alpha=math.nan, stderr=math.nan) for s in pruned.allocation.layers],
    )
    assert "h.0 - - 30.0%" in " ".join(printed(dataclasses.replace(pruned, allocation=allocation)).split())


def test_the_bar_of_a_block_is_in_proportion_to_its_sparsity():
    pruned = dataclasses.replace(pruned_model(blocks=1), achieved={"h.0.up.weight": 1.0, "h.0.down.weight": 0.5})
    assert printed(pruned).count("█") == 15


def test_the_group_of_n_of_m_sparsity_is_printed():
    pruned = pruned_model()
    pruned = dataclasses.replace(pruned, allocation=dataclasses.replace(pruned.allocation, group=8))
    assert "in groups of 8" in " ".join(printed(pruned).split())


def test_of_more_than_forty_blocks_the_extremes_and_deviations_are_printed():
    pruned = pruned_model(blocks=50)
    pruned = dataclasses.replace(pruned, achieved={**pruned.achieved, "h.25.up.weight": 0.6})
    text = printed(pruned)
    shown = [int(block) for block in re.findall(r"^h\.(\d+) ", text, re.M)]
    assert shown == [0, 1, 2, 3, 25, 46, 47, 48, 49]
    assert "41 others not shown" in text


def test_all_of_forty_blocks_are_printed():
    assert len(re.findall(r"^h\.\d+ ", printed(pruned_model(blocks=40)), re.M)) == 40
