import io
import math

import pytest
import torch
from rich.console import Console

import tempbalance as tb
from tempbalance.report.terminal import print_analysis, print_comparison, sparkline, standing_out


def printed(show, what, width=80):
    stream = io.StringIO()
    show(Console(file=stream, width=width), what)
    return stream.getvalue()


@pytest.fixture(scope="module")
def deep():
    """Eight blocks of five layers, the last of them untrained."""
    tensors = {}
    for block in range(8):
        for part in range(5):
            alpha = 1.8 + 0.1 * block + 0.01 * part
            weight = tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(60, alpha), (60, 60), seed=block)
            tensors[f"layers.{block}.part{part}.weight"] = weight
    tensors["layers.7.part4.weight"] = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    return tb.analyze(tensors)


def test_a_small_model_is_shown_whole(trained):
    text = printed(print_analysis, tb.analyze(trained))
    assert all(f"{i} " in text for i in range(4))
    assert "looks untrained" in text


def test_a_large_model_shows_what_stands_out(deep):
    rows = standing_out(deep.layers)
    assert len(rows) == 9
    assert {reason for _, reason in rows} == {"heavy tail", "light tail", "looks untrained"}
    assert "31 other layers not shown" in printed(print_analysis, deep)


def test_lines_fit_the_terminal(deep):
    assert max(map(len, printed(print_analysis, deep).splitlines())) <= 80


def test_summary_in_numbers(deep):
    text = printed(print_analysis, deep)
    assert "40 weight matrices, 39 with an alpha, estimator Hill" in text
    assert f"imbalance over layers {deep.imbalance:.2f}" in text


def test_skipped_weights_are_grouped_by_reason():
    tensors = {f"layers.{i}.weight": torch.full((30, 30), math.nan) for i in range(5)}
    text = printed(print_analysis, tb.analyze(tensors | {"a.weight": torch.randn(60, 60)}), width=120)
    assert "skipped, 900 of 900 weights are NaN or Inf (5): layers.0.weight, layers.1.weight, layers.2.weight" in text


def test_comparison_names_the_largest_change_first(trained):
    before = tb.analyze(trained)
    with torch.no_grad():
        trained[1].weight += 0.1 * torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
        trained[2].weight.normal_(generator=torch.Generator().manual_seed(2))
    text = printed(print_comparison, tb.compare(before, tb.analyze(trained, select="[0-2].*")))
    lines = text.splitlines()
    assert lines[4].startswith("1 ")
    assert "with an alpha only before (1): 2.weight" in text
    assert "only before (1): 3.weight" in text


def test_sparkline_of_equal_values():
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_names_are_not_markup():
    analysis = tb.analyze({"[red]x[/red].weight": torch.randn(60, 60)})
    assert "[red]x[/red]" in printed(print_analysis, analysis)
