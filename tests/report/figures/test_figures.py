"""The figures of every result, as ``plotly.graph_objects``."""

import dataclasses
import math
import sys

import pytest
import torch

import tempbalance as tb
from pruned_models import MEASURED, pruned_model
from study_results import results_of
from tempbalance.errors import BalanceError, MissingExtraError, UnknownLayerError
from tempbalance.study.summary import summarize

graph_objects = pytest.importorskip("plotly.graph_objects")


def tail(alpha, seed=0):
    return tb.testing.matrix_with_spectrum(tb.testing.pareto_quantiles(64, alpha), (64, 64), seed=seed)


@pytest.fixture(scope="module")
def weights():
    """Two blocks of two layers, a layer outside of them, and a random one."""
    found = {
        f"model.layers.{i}.{part}.weight": tail(2.0 + i + j) for i in range(2) for j, part in enumerate(("q", "fc"))
    }
    return found | {"<b>head.weight": tail(5.0), "pooler.weight": torch.randn(64, 64)}


@pytest.fixture(scope="module")
def analysis(weights):
    return tb.analyze(weights)


class TestAlpha:
    def test_each_role_is_a_trace_and_each_layer_a_point_with_its_error(self, analysis):
        traces = analysis.plot().data
        assert [trace.name for trace in traces] == ["q", "fc", "outside blocks (linear)"]
        assert traces[1].y == pytest.approx([analysis["model.layers.0.fc"].alpha, analysis[3].alpha], rel=1e-4)
        assert traces[1].error_y.array == pytest.approx([analysis[1].stderr, analysis[3].stderr], rel=1e-4)
        assert [round(x) for x in traces[1].x] == [0, 1]
        assert traces[1].text[0].startswith("model.layers.0.fc.weight<br>64x64<br>alpha 2.99 ± 0.")

    def test_the_axis_names_what_blocks_have_in_common_and_ticks_what_differs(self, analysis):
        layout = analysis.plot().layout
        assert layout.xaxis.ticktext == ("0", "1", "&lt;b&gt;head", "pooler")
        assert layout.xaxis.title.text == "model.layers.*, input to output"

    def test_stacks_of_blocks_are_told_apart(self):
        names = [f"{stack}.block.{i}.fc.weight" for stack in ("encoder", "decoder") for i in range(2)]
        layout = tb.analyze({name: tail(3.0) for name in names}).plot().layout
        assert layout.xaxis.ticktext == ("encoder.0", "encoder.1", "decoder.0", "decoder.1")

    def test_a_model_of_many_layers_has_at_most_sixteen_ticks(self, analysis):
        rows = [dataclasses.replace(analysis[0], name=f"h.{i}.q.weight", block=f"h.{i}") for i in range(100)]
        layout = dataclasses.replace(analysis, layers=rows).plot().layout
        assert len(layout.xaxis.ticktext) <= 16
        assert layout.xaxis.ticktext[1] == "7"

    def test_an_analysis_without_layers_has_an_empty_figure(self, analysis):
        figure = dataclasses.replace(analysis, layers=[]).plot()
        assert figure.data == ()
        assert figure.layout.annotations[0].text == "no layer has a value"


class TestSpectrum:
    def test_the_fitted_tail_starts_at_xmin_with_the_slope_of_alpha(self, analysis):
        layer, figure = analysis["model.layers.0.fc"], analysis.plot_esd("model.layers.0.fc")
        fitted = next(trace for trace in figure.data if trace.name.startswith("fitted tail"))
        assert fitted.x[0] == pytest.approx(layer.xmin, rel=1e-4)
        assert fitted.y[0] == pytest.approx(layer.num_tail / layer.num_eigenvalues, rel=1e-4)
        slope = math.log(fitted.y[1] / fitted.y[0]) / math.log(fitted.x[1] / fitted.x[0])
        assert slope == pytest.approx(1 - layer.alpha, rel=1e-3)
        names = [shape.name for shape in figure.layout.shapes]
        assert names == ["bulk (Marchenko-Pastur)", "xmin, start of the tail"]

    def test_a_layer_without_alpha_has_its_spectrum_and_a_random_one(self, analysis):
        names = [trace.name for trace in analysis.plot_esd("pooler").data]
        assert names == ["eigenvalues", "random matrix of this shape and variance"]

    @pytest.mark.parametrize("shape", [(64, 80), (32, 32, 3, 3), (48, 40, 4, 4)])
    def test_a_random_weight_follows_the_random_matrix_real_or_complex(self, shape):
        weight = torch.randn(*shape, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0))
        for each in (weight, weight.real):
            layer = tb.analyze({"conv.weight": each})
            values, law = layer.plot_esd(0).data
            for fraction in (0.2, 0.5, 0.8):  # quantiles of both curves
                found, expected = (
                    min(zip(trace.y, trace.x, strict=True), key=lambda pair: abs(pair[0] - fraction))[1]
                    for trace in (values, law)
                )
                assert found == pytest.approx(expected, rel=0.2)

    def test_an_unknown_layer_is_named_with_the_closest_ones(self, analysis):
        with pytest.raises(UnknownLayerError, match=r"no layer 'model.layers.0.f' .* model\.layers\.0\.fc\.weight"):
            analysis.plot_esd("model.layers.0.f")


def test_a_balancer_draws_its_history_and_refuses_without_one():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = tb.Balancer(optimizer, model, tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5)))
    with pytest.raises(BalanceError, match="no refresh"):
        balancer.plot()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert [(trace.name, trace.yaxis) for trace in balancer.plot().data] == [
        ("0", "y"),
        ("1", "y"),
        ("0", "y2"),
        ("1", "y2"),
    ]


def test_an_allocation_draws_layers_as_points_and_units_as_a_line(analysis):
    allocation = tb.allocate_sparsity(analysis, sparsity=0.5, method="alpha")
    figure = allocation.plot()
    assert [trace.name for trace in figure.data][-1] == "planned, by block"
    assert figure.data[-1].y == pytest.approx([unit.value for unit in allocation.units], rel=1e-4)
    assert figure.data[0].y[0] == pytest.approx(allocation["model.layers.0.q.weight"], rel=1e-4)
    assert tb.allocate_bits(analysis, 4.0).plot().layout.yaxis.title.text == "bits per weight"


def test_a_pruned_model_draws_what_was_achieved():
    pruned = pruned_model()
    figure = dataclasses.replace(pruned, achieved={name: 0.25 for name in pruned.achieved}).plot()
    assert set(figure.data[0].y) == {0.25}
    assert figure.data[-1].y == (0.3, 0.31, 0.32)


def test_a_comparison_draws_the_weights_or_of_two_analyses_alpha(weights):
    changed = {name: weight * (1.1 if "fc" in name else 1.0) for name, weight in weights.items()}
    moved = tb.compare(weights, changed, progress=False).plot()
    assert next(trace for trace in moved.data if trace.name == "fc").y == pytest.approx([0.1, 0.1], rel=1e-4)
    assert "identical" in next(trace for trace in moved.data if trace.name == "q").text[0]
    alphas = tb.compare(tb.analyze(weights), tb.analyze(changed)).plot()
    assert alphas.layout.yaxis.title.text == "change of alpha"


def test_a_tracked_run_draws_alpha_drift_and_stable_rank_over_the_steps(weights):
    runs = [{"fc.weight": weights["model.layers.0.fc.weight"] * (1 + 0.1 * step)} for step in range(3)]
    figure = tb.track(runs, progress=False).plot()
    assert [trace.yaxis for trace in figure.data] == ["y", "y2", "y3"]
    assert figure.data[1].y == pytest.approx([0, 0.1, 0.2], abs=1e-4)
    assert figure.layout.xaxis.title.text == "checkpoint"


def test_a_study_draws_a_dot_per_seed_and_the_mean_with_its_interval():
    summary = summarize(results_of(plain=[0.5] * 12, llr=[None, math.nan, *[0.6] * 10]))
    seeds, means = summary.plot().data
    assert seeds.x == pytest.approx([0.1] * 10)
    assert means.x == pytest.approx([0.1])
    assert summary.plot().layout.xaxis.title.text == "gain over plain"


def test_without_plotly_the_error_names_the_extra(analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tempbalance\[report\]'"):
        analysis.plot()


@pytest.mark.parametrize("name", ["<img src=x>", "$x$", "\ud800", "a" * 300])
def test_hostile_names_stay_text(name):
    figure = tb.analyze({f"{name}.weight": tail(3.0)}).plot()
    assert "<img" not in figure.to_json().replace("\\u003c", "<")
    assert len(figure.layout.xaxis.ticktext[0]) < 40


def test_each_result_has_a_repr_of_one_short_line(analysis, weights):
    allocation = tb.allocate_sparsity(analysis, sparsity=0.5, method="uniform")
    run = [{"fc.weight": weights["pooler.weight"] * (1 + i)} for i in range(2)]
    summary = summarize(results_of(plain=[0.5] * 12, llr=[0.6 + 0.01 * seed for seed in range(12)]))
    assert repr(allocation) == "Allocation(state dict, sparsity 0.5, by uniform, 4 layers)"
    assert repr(pruned_model()) == "PruningResult(some/model, wanda, sparsity 0.31)"
    assert repr(pruned_model(perplexity=MEASURED)).endswith("sparsity 0.31, perplexity 7.676 -> 9.1)")
    comparison = tb.compare(run[0], run[0], progress=False)
    assert repr(comparison) == f"Comparison(state dict -> state dict, 1 layers, {len(comparison.findings)} findings)"
    tracked = tb.track(run, progress=False)
    assert repr(tracked) == f"Track(model 1 to model 2, 2 checkpoints, {len(tracked.findings)} findings)"
    assert repr(summary).startswith("Summary(2 methods, 12 seeds: Use llr")


def test_a_name_with_the_syntax_of_a_template_stays_text():
    run = [{"a%{x}.weight": torch.randn(64, 64) * (1 + i)} for i in range(2)]
    assert tb.track(run, progress=False).plot().data[0].hovertemplate.startswith("a%&#123;x}.weight<br>")


def test_the_axis_of_a_study_with_a_long_baseline_has_a_short_title():
    summary = summarize(results_of(plain=[0.5] * 12, llr=[0.6] * 12))
    long = dataclasses.replace(summary, baseline="alphadecay:low=0.5,high=1.5")
    assert long.plot().layout.xaxis.title.text == "gain"
