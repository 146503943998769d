"""The table of a pruned model in the terminal."""

import dataclasses
import io
import math
import re

from rich.console import Console

from pruned_models import MEASURED, pruned_model
from tempbalance.report.pruning_terminal import print_pruning


def printed(pruned):
    stream = io.StringIO()
    print_pruning(Console(file=stream, width=80), pruned)
    return stream.getvalue()


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
