import dataclasses
import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

import tempbalance as tb
from tempbalance.report.analysis_report import print_analysis, render_analysis, summary_sentences
from tempbalance.report.terminal import print_findings
from tempbalance.types import Finding, Severity


def embedded(page):
    """Return the figures of a page, and the texts and figures of its layers."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def analysis(trained):
    with torch.no_grad():
        trained[1].weight[0, 0] = math.nan
    return tb.analyze(trained)


def test_the_page_has_every_layer_and_every_skipped_weight(analysis):
    page = render_analysis(analysis)
    assert [row["name"] for row in embedded(page)["layers"]] == ["0.weight", "2.weight", "3.weight"]
    assert re.findall(r'<tr data-index="\d" data-group="(.*?)"><td class="text">(.*?)</td>', page) == [
        ("ok", "0.weight"),
        ("ok", "2.weight"),
        ("random", "3.weight"),
    ]
    assert "<p>1: 1 of 6400 weights are NaN or Inf</p>" in page
    depth = embedded(page)["figures"]["depth"]["data"]
    assert [y for each in depth for y in each["y"]] == pytest.approx(
        [layer.alpha for layer in analysis.layers[:2]], rel=1e-4
    )


def test_the_page_starts_with_the_findings(analysis):
    page = render_analysis(analysis)
    first = page.index("<h2>Findings: 1 error, 1 warning</h2>")
    assert first < page.index('title="nan"') < page.index('title="untrained"') < page.index('id="depth"')
    assert page.count('<p class="facts">Next: ') == 2
    assert "<h2>No findings</h2>" in render_analysis(
        dataclasses.replace(analysis, layers=analysis.layers[:1], skipped=[])
    )


def test_the_findings_of_a_history_are_on_the_page(analysis):
    finding = tb.types.Finding(
        kind="noise", severity=tb.types.Severity.WARNING, layers=(), message="all noise", next_step="", evidence={}
    )
    history = [tb.balance.Refresh(step=0, units=[], measured=0, seconds=0.0, findings=(finding,))]
    page = render_analysis(analysis, history)
    assert "<h2>Findings: 1 error, 2 warnings</h2>" in page
    assert "all noise." in page


def test_a_layer_without_alpha_has_a_reason_and_no_fitted_tail(analysis):
    row = embedded(render_analysis(analysis))["layers"][2]
    assert "untrained" in row["verdict"]
    assert [each["name"] for each in row["figure"]["data"]] == [
        "eigenvalues",
        "random matrix of this shape and variance",
    ]


def test_the_title_is_the_name_of_the_model_and_the_path_is_small(analysis):
    page = render_analysis(dataclasses.replace(analysis, source="/data/models/llama/model.safetensors"))
    assert "<h1>llama/model.safetensors</h1>" in page
    assert '<p class="facts path">/data/models/llama/model.safetensors</p>' in page
    assert "<h1>Sequential</h1>" in render_analysis(analysis)
    assert '<p class="facts path"></p>' in render_analysis(analysis)


def test_settings_are_in_words(analysis):
    settings = re.search(r'<dl id="settings">(.*?)</dl>', render_analysis(analysis), re.S)[1]
    assert "<dt>estimator</dt><dd>Hill, min eigenvalues 10, share 0.5</dd>" in settings
    assert not re.search(r"[=\[{(]|None|True|&#x27;", settings.replace("+cpu", ""))


def test_the_page_loads_no_other_file(analysis):
    page = render_analysis(analysis)
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)\s*=|@import|url\(", markup)
    assert "default-src 'none'" in markup


def test_hostile_names_of_layers_are_escaped(trained):
    hostile = '</script><img src=x onerror=alert(1)><!--&"'
    analysis = tb.analyze({f"{hostile}.weight": trained[0].weight.detach()})
    page = render_analysis(dataclasses.replace(analysis, source=hostile))
    assert "<img" not in page
    assert embedded(page)["layers"][0]["name"] == f"{hostile}.weight"


def test_the_page_of_a_7b_model_is_smaller_than_4_mb(analysis):
    row = dataclasses.replace(
        analysis.layers[0], esd=tb.types.ESD(tuple(1.2345678 * i for i in range(1, 257)), tuple(range(256, 0, -1)))
    )
    rows = [dataclasses.replace(row, name=f"model.layers.{i // 7}.part{i % 7}.weight") for i in range(225)]
    assert len(render_analysis(dataclasses.replace(analysis, layers=rows)).encode()) < 4e6


def test_an_analysis_without_layers_and_one_of_zeros_are_rendered(analysis):
    assert embedded(render_analysis(dataclasses.replace(analysis, layers=[])))["layers"] == []
    zero = tb.analyze({"a.weight": torch.zeros(20, 20)})
    assert embedded(render_analysis(zero))["layers"][0]["figure"]["data"][1:] == []


def test_the_summary_counts_fitted_and_untrained_layers(analysis):
    text = summary_sentences(analysis.layers)
    assert text.startswith("2 of 3 weight matrices have a fitted tail: median alpha ")
    assert "1 looks untrained, like a random matrix: 3.weight." in text


def test_the_report_says_how_many_parameters_the_rows_cover(analysis):
    size = tb.types.ModelSize(parameters=100_000, weights=60_000, block_weights=0)
    page = render_analysis(dataclasses.replace(analysis, size=size))
    assert f"The rows cover {analysis.covered:,} of the model&#x27;s 100,000 parameters" in page
    assert "parameters (" not in render_analysis(dataclasses.replace(analysis, size=None))


def test_the_summary_of_an_analysis_without_layers_states_it():
    assert summary_sentences([]) == "No weight matrix was analysed."


def test_the_summary_of_an_analysis_without_any_fit_states_it():
    zero = tb.analyze({"a.weight": torch.zeros(20, 20)})
    assert summary_sentences(zero.layers) == (
        "None of the 1 weight matrices has a tail that could be fitted. "
        "1 without an alpha for other reasons: see the table."
    )


def refreshes(count, *units):
    """A history in which alpha falls by 0.01 a step; a unit is a name and its first alpha."""
    return [
        tb.balance.Refresh(
            step=step,
            units=[
                tb.balance.UnitState(name=name, alpha=alpha - 0.01 * step, multiplier=1 + alpha / 10)
                for name, alpha in units
            ],
            measured=len(units),
            seconds=0.0,
        )
        for step in range(count)
    ]


class TestHistory:
    def drawn(self, analysis, history):
        return embedded(render_analysis(analysis, history))["figures"]["history"]["data"]

    def test_every_unit_has_its_alphas_and_multipliers_over_the_steps(self, analysis):
        traces = self.drawn(analysis, refreshes(3, ("h.0", 2.0), ("h.1", 4.0)))
        assert [(each["name"], each["yaxis"], each["x"], each["y"]) for each in traces] == [
            ("h.0", "y", [0, 1, 2], [2.0, 1.99, 1.98]),
            ("h.1", "y", [0, 1, 2], [4.0, 3.99, 3.98]),
            ("h.0", "y2", [0, 1, 2], [1.2, 1.2, 1.2]),
            ("h.1", "y2", [0, 1, 2], [1.4, 1.4, 1.4]),
        ]

    def test_a_page_without_history_has_no_figure_of_it(self, analysis):
        for page in (render_analysis(analysis), render_analysis(analysis, [])):
            assert list(embedded(page)["figures"]) == ["depth"]
            assert "Over training" not in page

    def test_a_history_of_one_refresh_is_rendered(self, analysis):
        assert self.drawn(analysis, refreshes(1, ("h.0", 2.0)))[0]["x"] == [0]

    def test_a_unit_of_the_history_without_alpha_has_a_multiplier(self, analysis):
        history = refreshes(2, ("h.1", 2.0), ("h.0", math.nan))
        for refresh in history:
            refresh.units[1] = dataclasses.replace(refresh.units[1], multiplier=1.0)
        traces = self.drawn(analysis, history)
        assert [(each["name"], each["yaxis"]) for each in traces] == [("h.1", "y"), ("h.1", "y2"), ("h.0", "y2")]
        assert "Without an alpha: h.0." in render_analysis(analysis, history)

    def test_a_unit_that_is_added_later_has_null_before(self, analysis):
        history = [*refreshes(1, ("h.0", 2.0)), *refreshes(2, ("h.0", 2.0), ("h.1", 3.0))[1:]]
        assert self.drawn(analysis, history)[1]["y"] == [None, 2.99]

    def test_a_long_history_is_thinned_between_its_first_and_last_refresh(self, analysis):
        history = refreshes(10_001, ("h.0", 200.0))
        steps = self.drawn(analysis, history)[0]["x"]
        assert (steps[0], steps[-1]) == (0, 10_000)
        assert len(steps) == len(set(steps)) == 400
        assert "10001 refreshes from step 0 to 10000, 400 drawn" in render_analysis(analysis, history)

    def test_the_history_of_a_7b_model_adds_less_than_2_mb(self, analysis):
        units = [(f"model.layers.{i // 7}.part{i % 7}", 200.12345) for i in range(224)]
        with_history = render_analysis(analysis, refreshes(1000, *units))
        assert len(with_history.encode()) - len(render_analysis(analysis).encode()) < 2e6

    def test_hostile_names_of_units_are_escaped(self, analysis):
        hostile = "</script><img src=x onerror=alert(1)>"
        page = render_analysis(analysis, refreshes(2, (hostile, 3.0)))
        assert "<img" not in page
        assert embedded(page)["figures"]["history"]["data"][0]["name"].endswith("src=x onerror=alert(1)&gt;")

    def test_save_draws_the_history_of_a_balancer(self, tmp_path):
        model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recipe = tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5), every=tb.Every(steps=2))
        balancer = tb.Balancer(optimizer, model, recipe)
        for _ in range(5):
            model(torch.ones(1, 64)).sum().backward()
            optimizer.step()
        tb.analyze(model).save(tmp_path / "report.html", history=balancer.history)
        traces = embedded((tmp_path / "report.html").read_text("utf-8"))["figures"]["history"]["data"]
        assert traces[0]["x"] == [0, 2, 4]
        multipliers = [each for each in traces if each["yaxis"] == "y2"]
        assert [each["name"] for each in multipliers] == ["0", "1", "2"]
        assert sorted(each["y"][0] for each in multipliers)[::2] == [0.5, 1.5]


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
