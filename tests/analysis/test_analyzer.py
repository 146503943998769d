import itertools
import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import oracles
import tempbalance as tb
from command_line import interrupted, run
from tempbalance.analysis.batching import BatchLimits, fit_model_weights
from tempbalance.errors import AnalysisError, NonFiniteError, SelectionError, WeightError, WindowError
from tempbalance.layers import find_weights
from tempbalance.weight_fit import fit_weight


class TestLiveModel:
    def test_rows_are_in_model_order_with_known_alphas(self, trained):
        analysis = tb.analyze(trained)
        assert [layer.name for layer in analysis.layers] == [f"{i}.weight" for i in range(4)]
        assert [layer.alpha for layer in analysis.layers[:3]] == pytest.approx([2.2, 3.0, 4.0], rel=0.05)

    def test_an_untrained_layer_has_the_status_random_and_no_alpha(self, trained):
        row = tb.analyze(trained).layers[3]
        assert row.status is tb.types.Status.RANDOM
        assert all(math.isnan(x) for x in (row.alpha, row.stderr, row.xmin, row.ks_distance, row.alpha_hat))
        assert row.mp_ks_distance < 0.05
        assert "untrained" in row.status.message

    def test_all_layers_of_a_fresh_network_are_random(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3), torch.nn.LSTM(64, 56), torch.nn.Linear(56, 100))
        assert {layer.status for layer in tb.analyze(model).layers} == {tb.types.Status.RANDOM}

    def test_a_state_dict_has_the_alphas_of_the_model(self, trained):
        live, stored = tb.analyze(trained), tb.analyze(trained.state_dict())
        assert repr([row.alpha for row in live.layers]) == repr([row.alpha for row in stored.layers])

    def test_analyze_does_not_change_the_model(self, trained):
        before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        attributes = {name: sorted(vars(module)) for name, module in trained.named_modules()}
        tb.analyze(trained)
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert attributes == {name: sorted(vars(module)) for name, module in trained.named_modules()}

    def test_numbers_do_not_depend_on_batches(self, trained):
        weights, _ = find_weights(trained)
        options = {"estimator": tb.Hill(), "limits": BatchLimits(batch=1, smallest_batch=1)}
        alone = {weight.name: found for batch in fit_model_weights(weights, **options) for weight, found in batch}
        for row in tb.analyze(trained).layers[:3]:
            assert row.alpha == alone[row.name].fit.alpha
            assert row.xmin == alone[row.name].fit.xmin

    def test_select_keeps_the_layers_that_match(self, trained):
        assert [row.name for row in tb.analyze(trained, select=["0.*", "2.*"]).layers] == ["0.weight", "2.weight"]

    def test_imbalance_is_the_standard_deviation_of_alpha(self, trained):
        analysis = tb.analyze(trained)
        alphas = torch.tensor([row.alpha for row in analysis.layers[:3]])
        assert analysis.imbalance == pytest.approx(alphas.std(correction=0).item())

    def test_settings_contain_estimator_and_versions(self, trained):
        for estimator in (tb.KS(), "ks", "tempbalance.tail:KS"):
            settings = tb.analyze(trained, estimator=estimator).settings
            assert settings["estimator"] == "KS(min_eigenvalues=10)"
        assert settings["torch"] == torch.__version__


class TestDegenerateWeights:
    @pytest.mark.parametrize(
        ("weight", "status"),
        [
            (torch.zeros(30, 30), tb.types.Status.ZERO),
            (torch.ones(30, 30), tb.types.Status.TOO_FEW),
            (torch.randn(1, 50), tb.types.Status.TOO_FEW),
            (torch.randn(3, 3), tb.types.Status.TOO_FEW),
            (torch.eye(40), tb.types.Status.CONSTANT),
        ],
        ids=["all zero", "rank 1", "1 x n", "tiny", "constant spectrum"],
    )
    def test_a_degenerate_weight_has_a_status_and_no_alpha(self, weight, status):
        row = tb.analyze({"a.weight": weight}).layers[0]
        assert row.status is status
        assert math.isnan(row.alpha)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_non_finite_layer_is_skipped_and_the_others_are_analysed(self, trained, bad):
        with torch.no_grad():
            trained[1].weight[0, 0] = bad
        analysis = tb.analyze(trained)
        assert [row.name for row in analysis.layers] == ["0.weight", "2.weight", "3.weight"]
        assert analysis.skipped == [("1.weight", "1 of 6400 weights are NaN or Inf")]

    def test_strict_raises_with_the_name_of_the_layer(self, trained):
        with torch.no_grad():
            trained[1].weight[0, 0] = math.nan
        with pytest.raises(NonFiniteError, match=r"1\.weight: 1 of 6400"):
            tb.analyze(trained, strict=True)


class TestBadInput:
    def test_a_model_without_weight_matrices_raises(self):
        with pytest.raises(WeightError, match="no weight matrix"):
            tb.analyze(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm1d(3)))

    def test_a_source_of_another_type_raises(self):
        with pytest.raises(WeightError, match="cannot analyse a int"):
            tb.analyze(3)

    def test_a_pattern_without_a_match_raises_with_names(self, trained):
        with pytest.raises(SelectionError, match=r"0\.weight"):
            tb.analyze(trained, select="*.bias_typo")

    @pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
    def test_a_device_that_does_not_exist_raises(self, trained, device):
        with pytest.raises(SelectionError, match=f"device '{device}' cannot be used"):
            tb.analyze(trained, device=device)

    def test_none_means_the_default_of_each_option(self, trained):
        given = tb.analyze(trained, estimator=None, windows=None, select=None, device=None, resume=None)
        assert repr(given.layers) == repr(tb.analyze(trained).layers)

    @pytest.mark.parametrize("estimator", ["kolmogorov", "os:path", "nowhere:KS", 3])
    def test_an_unknown_estimator_raises_with_the_names(self, trained, estimator):
        with pytest.raises(SelectionError, match=r"averaged_hill|not a subclass|cannot load|expected an estimator"):
            tb.analyze(trained, estimator=estimator)

    @pytest.mark.parametrize("windows", ["farms", 3, tb.FARMS])
    def test_windows_of_another_type_raise(self, trained, windows):
        with pytest.raises(WindowError, match="windows must be None or windows such as"):
            tb.analyze(trained, windows=windows)

    def test_resume_of_a_live_model_raises(self, trained, tmp_path):
        with pytest.raises(AnalysisError, match="model in memory"):
            tb.analyze(trained, resume=tmp_path / "x.partial")


@pytest.fixture(scope="module")
def linear_layers(minilm):
    """Spectrum, and eigenvalues by a naive SVD, of every linear layer: six in each of six blocks, and the pooler."""
    tensors = load_file(minilm / "model.safetensors")
    names = [name for name, tensor in tensors.items() if tensor.ndim == 2 and "embeddings" not in name]
    assert len(names) == 37
    return {name: (tb.weight_spectrum(tensors[name]), oracles.eigenvalues(tensors[name][None])) for name in names}


class TestRealTransformer:
    @pytest.mark.parametrize(
        ("estimator", "oracle"),
        [
            (tb.Hill(), oracles.hill),
            (tb.released.HillAsReleased(), oracles.hill_as_released),
            (tb.KS(), oracles.ks_alpha),
        ],
    )
    def test_every_linear_layer_agrees_with_a_naive_svd(self, minilm, linear_layers, estimator, oracle):
        rows = {row.name: row for row in tb.analyze(minilm, estimator=estimator).layers}
        assert set(rows) == set(linear_layers)
        for name, (spectrum, values) in linear_layers.items():
            fit = estimator.fit(spectrum)
            assert fit.alpha == pytest.approx(oracle(values), rel=1e-6)
            assert rows[name].alpha == pytest.approx(fit.alpha, rel=1e-9) or name == "pooler.dense.weight"

    def test_ks_finds_the_threshold_of_an_exhaustive_search(self, linear_layers):
        for spectrum, values in linear_layers.values():
            fit = tb.KS().fit(spectrum)
            distance, _, xmin, num_tail = oracles.ks(values)
            assert fit.num_tail == num_tail
            assert (fit.xmin, fit.ks_distance) == (pytest.approx(xmin, rel=1e-6), pytest.approx(distance, rel=1e-6))

    def test_only_the_pooler_of_minilm_is_random(self, minilm_analysis):
        # Sentence embeddings average the tokens and do not use the pooler: its bias is zero, its weights are Gaussian.
        statuses = {row.name: row.status for row in minilm_analysis.layers}
        assert [name for name, status in statuses.items() if status is not tb.types.Status.OK] == [
            "pooler.dense.weight"
        ]
        assert statuses["pooler.dense.weight"] is tb.types.Status.RANDOM

    @pytest.mark.parametrize("estimator", [tb.Hill(), tb.KS()])
    @pytest.mark.parametrize("factor", [1e-6, 1e6])
    def test_alpha_does_not_depend_on_scale(self, minilm, estimator, factor):
        select = "*layer.0.*"
        tensors = {name: tensor.double() * factor for name, tensor in load_file(minilm / "model.safetensors").items()}
        plain, scaled = (tb.analyze(source, estimator=estimator, select=select) for source in (minilm, tensors))
        expected = {row.name: row.alpha for row in plain.layers}
        assert {row.name: row.alpha for row in scaled.layers} == pytest.approx(expected, rel=1e-9)

    def test_blocks_of_minilm_are_those_of_the_encoder(self, minilm_analysis):
        assert {row.block for row in minilm_analysis.layers} == {f"encoder.layer.{i}" for i in range(6)} | {None}
        assert 0 < minilm_analysis.block_imbalance < minilm_analysis.imbalance

    def test_embeddings_of_minilm_are_listed_as_skipped(self, minilm_analysis):
        skipped = dict(minilm_analysis.skipped)
        assert "embedding" in skipped["embeddings.word_embeddings.weight"]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({f"layers.{i}.weight": torch.randn(64 + i, 64, generator=generator) for i in range(12)}, path)
    return path


@dataclass(frozen=True)
class Interrupted(tb.Hill):
    """Hill's estimator, interrupted when its count of calls reaches 5."""

    __module__ = "tempbalance"  # rows of other code are not used again
    calls: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def fit_tails(self, eigenvalues):
        if next(self.calls) == 5:
            raise KeyboardInterrupt
        return super().fit_tails(eigenvalues)


@pytest.fixture
def partial(checkpoint, tmp_path) -> Path:
    """The file of an analysis that was interrupted."""
    path = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        tb.analyze(checkpoint, estimator=Interrupted(calls=iter(range(100))), resume=path)
    path.write_text(path.read_text().replace("Interrupted(", "Hill("))
    return path


class TestResume:
    def test_a_resumed_analysis_does_not_compute_finished_rows_again(self, checkpoint, tmp_path):
        expected = tb.analyze(checkpoint, estimator=Interrupted(calls=iter(range(100, 200))))
        partial = tmp_path / "partial"
        with pytest.raises(KeyboardInterrupt):
            tb.analyze(checkpoint, estimator=Interrupted(calls=iter(range(100))), resume=partial)
        done = len(partial.read_text().splitlines()) - 1
        assert 0 < done < 12
        calls = iter(range(100, 200))
        resumed = tb.analyze(checkpoint, estimator=Interrupted(calls=calls), resume=partial)
        assert repr(resumed.layers) == repr(expected.layers)
        assert next(calls) == 100 + 12 - done
        assert not partial.exists()

    def test_a_resumed_analysis_computes_an_incomplete_row_again(self, checkpoint, partial, caplog):
        expected = tb.analyze(checkpoint)
        text = partial.read_text()
        partial.write_text(text[:-100])
        with caplog.at_level(logging.INFO, logger="tempbalance"):
            assert repr(tb.analyze(checkpoint, resume=partial).layers) == repr(expected.layers)
        assert f"resuming: {len(text.splitlines()) - 2} of 12" in caplog.text

    def test_a_resume_file_of_other_settings_is_not_used(self, checkpoint, partial, caplog):
        with caplog.at_level(logging.WARNING, logger="tempbalance"):
            analysis = tb.analyze(checkpoint, estimator=tb.Hill(0.3), resume=partial)
        assert "starting afresh" in caplog.text
        assert repr(analysis.layers) == repr(tb.analyze(checkpoint, estimator=tb.Hill(0.3)).layers)

    def test_a_resume_file_that_cannot_be_written_raises(self, checkpoint, tmp_path):
        with pytest.raises(AnalysisError, match="cannot write"):
            tb.analyze(checkpoint, resume=tmp_path / "nowhere" / "partial")

    @pytest.mark.slow
    def test_an_interrupted_command_is_resumed(self, tmp_path):
        path, out = tmp_path / "model.safetensors", tmp_path / "out.json"
        save_file({f"layers.{i}.weight": torch.randn(600 + i, 600) for i in range(60)}, path)
        command = [sys.executable, "-m", "tempbalance", "analyze", str(path), "--out", str(out), "--quiet"]
        partial = out.with_name("out.json.partial")
        status, errors, done = interrupted(command, partial)
        assert status == 130
        assert "again to resume" in errors
        assert not out.exists()
        assert 0 < done < 60
        assert run(*command[3:]) == 0
        assert len(json.loads(out.read_text())["layers"]) == 60
        assert not partial.exists()


class TestWindows:
    def test_rows_contain_the_number_of_windows_and_their_coverage(self, trained, tmp_path):
        analysis = tb.analyze(trained, windows=tb.FARMS())
        row = analysis.layers[0]
        assert (row.num_matrices, row.coverage) == (1, 1.0)
        assert row.num_eigenvalues == 40 * row.num_windows
        assert analysis.settings["windows"] == repr(tb.FARMS())
        assert row.alpha == fit_weight(trained[0].weight.detach(), windows=tb.FARMS()).fit.alpha
        path = tmp_path / "a.json"
        analysis.save(path)
        assert repr(tb.Analysis.load(path).layers) == repr(analysis.layers)
        assert {"num_windows", "coverage"} <= set(analysis.to_pandas().columns)
        analysis.save(tmp_path / "a.html")

    def test_norms_do_not_depend_on_the_number_of_windows(self, trained):
        few, many = (tb.analyze(trained, windows=tb.FARMS(windows=k)).layers[0] for k in (2, 8))
        assert many.log10_frobenius_norm == pytest.approx(few.log10_frobenius_norm, abs=0.02)
        assert few.log10_frobenius_norm < tb.analyze(trained).layers[0].log10_frobenius_norm

    def test_an_untrained_layer_is_random_with_windows_too(self):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"linear": torch.nn.Linear(300, 200), "conv": torch.nn.Conv2d(64, 128, 3)})
        for windows in (tb.FARMS(), tb.FARMS(windows=8), tb.FARMS(aspect_ratio=2.0)):
            rows = tb.analyze(model, windows=windows).layers
            assert [row.status.value for row in rows] == ["random"] * 2

    def test_layers_of_different_shapes_and_kinds_are_analysed(self):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict(
            {
                "wide": torch.nn.Linear(300, 60),
                "square": torch.nn.Linear(60, 60),
                "conv": torch.nn.Conv2d(60, 90, 3),
                "tiny": torch.nn.Linear(4, 3),
            }
        )
        for windows in (tb.FARMS(), tb.released.FARMSAsReleased(30, 3)):
            rows = tb.analyze(model, windows=windows).layers
            assert [row.name for row in rows] == ["wide.weight", "square.weight", "conv.weight", "tiny.weight"]
            assert [row.num_matrices for row in rows] == [1, 1, 9, 1]

    def test_a_layer_that_no_window_fits_is_skipped(self):
        analysis = tb.analyze(
            {"a.weight": torch.randn(20, 20), "b.weight": torch.randn(2, 3)}, windows=tb.FARMS(aspect_ratio=5.0)
        )
        assert [row.name for row in analysis.layers] == ["a.weight"]
        assert "fits into 2 x 3" in analysis.skipped[0].reason

    def test_numbers_of_windows_do_not_depend_on_resuming(self, checkpoint, tmp_path):
        expected = tb.analyze(checkpoint, windows=tb.FARMS())
        partial = tmp_path / "partial"
        with pytest.raises(KeyboardInterrupt):
            tb.analyze(checkpoint, windows=tb.FARMS(), estimator=Interrupted(calls=itertools.count()), resume=partial)
        partial.write_text(partial.read_text().replace("Interrupted(", "Hill("))
        assert repr(tb.analyze(checkpoint, windows=tb.FARMS(), resume=partial).layers) == repr(expected.layers)

    @pytest.mark.parametrize("farms", [tb.FARMS(), tb.FARMS(rows=1)], ids=repr)
    def test_a_head_of_few_classes_has_too_few_eigenvalues_and_the_rest_is_measured(self, farms):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
        statuses = [row.status for row in tb.analyze(model, windows=farms).layers]
        assert statuses[2] is tb.types.Status.TOO_FEW
        assert set(statuses[:2]) <= {tb.types.Status.OK, tb.types.Status.RANDOM}

    def test_analyses_with_different_windows_cannot_be_compared(self, trained):
        with pytest.raises(AnalysisError, match="different windows"):
            tb.compare(tb.analyze(trained), tb.analyze(trained, windows=tb.FARMS()))

    def test_a_file_of_a_version_without_windows_can_be_loaded(self, trained, tmp_path):
        path = tmp_path / "a.json"
        tb.analyze(trained).save(path)
        data = json.loads(path.read_text())
        for row in data["layers"]:
            del row["num_windows"], row["coverage"]
        del data["settings"]["windows"]
        path.write_text(json.dumps(data))
        old = tb.Analysis.load(path)
        assert {(row.num_windows, row.coverage) for row in old.layers} == {(1, 1.0)}
        assert len(tb.compare(old, tb.analyze(trained)).layers) == 4
