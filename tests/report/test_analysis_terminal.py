import dataclasses
import io
import math

import pytest
import torch
from rich.console import Console

import tempbalance as tb
from tempbalance.report.analysis_terminal import print_analysis
from tempbalance.report.findings_text import print_findings
from tempbalance.types import Finding, Severity


def printed(analysis, width=80):
    stream = io.StringIO()
    print_analysis(Console(file=stream, width=width), analysis)
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


def test_every_layer_of_a_small_model_is_printed(trained):
    text = printed(tb.analyze(trained))
    assert all(f"{i} " in text for i in range(4))
    assert "looks untrained" in text


def test_the_findings_come_first_with_their_next_step(deep):
    lines = printed(deep, width=300).splitlines()
    assert lines[1] == "Findings: 1 warning"
    assert lines[2].startswith("warning  layers.7.part4.weight (1 of 40) looks untrained")
    assert " Next: load the weights that belong there" in lines[2]
    assert lines[2].endswith("[untrained]")


def test_only_layers_with_a_warning_of_a_large_model_are_printed(deep):
    text = printed(deep)
    assert "Layers with a warning" in text
    assert "39 other layers not shown" in text


def test_a_model_of_similar_layers_has_no_findings(deep):
    text = printed(dataclasses.replace(deep, layers=deep.layers[:39]))
    assert text.splitlines()[1] == "No findings"
    assert "39 of 39 compared with layers like them" in " ".join(text.split())


def test_at_most_five_findings_of_a_kind_are_printed(deep):
    names = [f"layers.{block}.part0.weight" for block in range(7)]
    finding = Finding(
        kind="outlier", severity=Severity.WARNING, layers=("x",), message="far off", next_step="", evidence={}
    )
    stream = io.StringIO()
    print_findings(Console(file=stream, width=80), [dataclasses.replace(finding, layers=(name,)) for name in names])
    assert stream.getvalue().count("far off") == 5
    assert "2 more of kind outlier" in stream.getvalue()


def test_the_summary_says_how_many_parameters_the_rows_cover():
    state = {"a.weight": torch.randn(60, 60), "a.bias": torch.zeros(60), "wte.weight": torch.randn(10, 60)}
    assert "they cover 3,600 of the model's 4,260 parameters (84.5%)" in printed(tb.analyze(state))


def test_printed_lines_fit_a_terminal_of_80_columns(deep):
    assert max(map(len, printed(deep).splitlines())) <= 80


def test_the_summary_counts_layers_and_gives_the_imbalance(deep):
    text = printed(deep)
    assert "40 weight matrices, 39 with an alpha, estimator Hill" in text
    assert f"imbalance over layers {deep.imbalance:.2f}" in text


def test_skipped_weights_are_grouped_by_reason():
    tensors = {f"layers.{i}.weight": torch.full((30, 30), math.nan) for i in range(5)}
    text = printed(tb.analyze(tensors | {"a.weight": torch.randn(60, 60)}), width=120)
    assert "skipped, 900 of 900 weights are NaN or Inf (5): layers.0.weight, layers.1.weight, layers.2.weight" in text


def test_layer_names_are_not_read_as_markup():
    analysis = tb.analyze({"[red]x[/red].weight": torch.randn(60, 60)})
    assert "[red]x[/red]" in printed(analysis)
