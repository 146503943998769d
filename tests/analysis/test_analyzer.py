import json
import logging
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import oracles
import tempbalance as tb
from command_line import interrupted
from tempbalance.errors import AnalysisError, NonFiniteError, SelectionError, WeightError


class TestLiveModel:
    def test_rows_are_in_model_order_with_known_alphas(self, trained):
        analysis = tb.analyze(trained)
        assert [layer.name for layer in analysis.layers] == [f"{i}.weight" for i in range(4)]
        assert [layer.alpha for layer in analysis.layers[:3]] == pytest.approx([2.2, 3.0, 4.0], rel=0.05)

    def test_untrained_layer_is_recognised_instead_of_fitted(self, trained):
        row = tb.analyze(trained).layers[3]
        assert row.status is tb.types.Status.RANDOM
        assert all(math.isnan(x) for x in (row.alpha, row.stderr, row.xmin, row.ks_distance, row.alpha_hat))
        assert row.mp_ks_distance < 0.05
        assert "untrained" in row.status.message

    def test_fresh_network_is_untrained_throughout(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3), torch.nn.LSTM(64, 56), torch.nn.Linear(56, 100))
        assert {layer.status for layer in tb.analyze(model).layers} == {tb.types.Status.RANDOM}

    def test_state_dict_gives_the_same(self, trained):
        live, stored = tb.analyze(trained), tb.analyze(trained.state_dict())
        assert repr([row.alpha for row in live.layers]) == repr([row.alpha for row in stored.layers])

    def test_model_is_left_alone(self, trained):
        before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        attributes = {name: sorted(vars(module)) for name, module in trained.named_modules()}
        tb.analyze(trained)
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert attributes == {name: sorted(vars(module)) for name, module in trained.named_modules()}

    def test_batching_does_not_change_the_numbers(self, trained, monkeypatch):
        together = tb.analyze(trained)
        monkeypatch.setattr("tempbalance.analysis.batching._BATCH", 1)
        assert repr(tb.analyze(trained).layers) == repr(together.layers)

    def test_selection(self, trained):
        assert [row.name for row in tb.analyze(trained, select=["0.*", "2.*"]).layers] == ["0.weight", "2.weight"]

    def test_imbalance(self, trained):
        analysis = tb.analyze(trained)
        alphas = torch.tensor([row.alpha for row in analysis.layers[:3]])
        assert analysis.imbalance == pytest.approx(alphas.std(correction=0).item())

    def test_settings_say_what_was_done(self, trained):
        settings = tb.analyze(trained, estimator=tb.KS()).settings
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
    def test_has_a_row_with_a_status(self, weight, status):
        row = tb.analyze({"a.weight": weight}).layers[0]
        assert row.status is status
        assert math.isnan(row.alpha)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_layer_is_skipped_and_the_rest_goes_on(self, trained, bad):
        with torch.no_grad():
            trained[1].weight[0, 0] = bad
        analysis = tb.analyze(trained)
        assert [row.name for row in analysis.layers] == ["0.weight", "2.weight", "3.weight"]
        assert analysis.skipped == [("1.weight", "1 of 6400 weights are NaN or Inf")]

    def test_strict_raises_and_names_the_layer(self, trained):
        with torch.no_grad():
            trained[1].weight[0, 0] = math.nan
        with pytest.raises(NonFiniteError, match=r"1\.weight: 1 of 6400"):
            tb.analyze(trained, strict=True)


class TestBadInput:
    def test_model_without_any_weight_matrix(self):
        with pytest.raises(WeightError, match="no weight matrix"):
            tb.analyze(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm1d(3)))

    def test_not_a_model(self):
        with pytest.raises(WeightError, match="cannot analyse a int"):
            tb.analyze(3)

    def test_pattern_that_matches_nothing_lists_names(self, trained):
        with pytest.raises(SelectionError, match=r"0\.weight"):
            tb.analyze(trained, select="*.bias_typo")

    @pytest.mark.parametrize("device", ["cuda:7", "nonsense"])
    def test_device_that_does_not_exist(self, trained, device):
        with pytest.raises(SelectionError, match=f"device '{device}' cannot be used"):
            tb.analyze(trained, device=device)

    def test_resume_of_a_live_model(self, trained, tmp_path):
        with pytest.raises(AnalysisError, match="model in memory"):
            tb.analyze(trained, resume=tmp_path / "x.partial")


@pytest.fixture(scope="module")
def linear_layers(minilm):
    """Eigenvalues by a naive SVD of every linear layer: six in each of six blocks, and the pooler."""
    tensors = load_file(minilm / "model.safetensors")
    names = [name for name, tensor in tensors.items() if tensor.ndim == 2 and "embeddings" not in name]
    assert len(names) == 37
    return {name: (tensors[name], oracles.eigenvalues(tensors[name][None])) for name in names}


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
        for name, (weight, values) in linear_layers.items():
            fit = estimator.fit(tb.weight_spectrum(weight))
            assert fit.alpha == pytest.approx(oracle(values), rel=1e-6)
            assert rows[name].alpha == pytest.approx(fit.alpha, rel=1e-9) or name == "pooler.dense.weight"

    def test_ks_finds_the_threshold_of_an_exhaustive_search(self, linear_layers):
        for weight, values in linear_layers.values():
            fit = tb.KS().fit(tb.weight_spectrum(weight))
            distance, _, xmin, num_tail = oracles.ks(values)
            assert fit.num_tail == num_tail
            assert (fit.xmin, fit.ks_distance) == (pytest.approx(xmin, rel=1e-6), pytest.approx(distance, rel=1e-6))

    def test_the_pooler_was_never_trained(self, minilm):
        # Sentence embeddings average the tokens and do not use the pooler: its bias is zero, its weights are Gaussian.
        statuses = {row.name: row.status for row in tb.analyze(minilm).layers}
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

    def test_blocks(self, minilm):
        analysis = tb.analyze(minilm)
        assert {row.block for row in analysis.layers} == {f"encoder.layer.{i}" for i in range(6)} | {None}
        assert 0 < analysis.block_imbalance < analysis.imbalance

    def test_embeddings_are_listed_as_skipped(self, minilm):
        skipped = dict(tb.analyze(minilm).skipped)
        assert "embedding" in skipped["embeddings.word_embeddings.weight"]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({f"layers.{i}.weight": torch.randn(64, 64, generator=generator) for i in range(12)}, path)
    return path


class TestResume:
    def test_rows_done_are_not_computed_again(self, checkpoint, tmp_path, monkeypatch):
        expected = tb.analyze(checkpoint)
        partial = tmp_path / "partial"
        monkeypatch.setattr("tempbalance.analysis.batching._BATCH", 1)
        calls = iter(range(100))

        def interrupt(*args, **kwargs):
            if next(calls) == 5:
                raise KeyboardInterrupt
            return fit_weights(*args, **kwargs)

        fit_weights = sys.modules["tempbalance.weight_fit"].fit_weights
        monkeypatch.setattr("tempbalance.analysis.batching.fit_weights", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tb.analyze(checkpoint, resume=partial)
        done = len(partial.read_text().splitlines()) - 1
        assert 0 < done < 12
        calls = iter(range(100, 200))
        assert repr(tb.analyze(checkpoint, resume=partial).layers) == repr(expected.layers)
        assert next(calls) == 100 + 12 - done
        assert not partial.exists()

    def test_line_cut_short_is_computed_again(self, checkpoint, tmp_path, monkeypatch):
        partial = tmp_path / "partial"
        expected = tb.analyze(checkpoint)
        monkeypatch.setattr("pathlib.Path.unlink", lambda *_args, **_kwargs: None)
        tb.analyze(checkpoint, resume=partial)
        text = partial.read_text()
        partial.write_text(text[: len(text) // 2])
        assert repr(tb.analyze(checkpoint, resume=partial).layers) == repr(expected.layers)

    def test_other_settings_start_afresh(self, checkpoint, tmp_path, monkeypatch, caplog):
        partial = tmp_path / "partial"
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.unlink", lambda *_args, **_kwargs: None)
            tb.analyze(checkpoint, resume=partial)
        with caplog.at_level(logging.WARNING, logger="tempbalance"):
            analysis = tb.analyze(checkpoint, estimator=tb.Hill(0.3), resume=partial)
        assert "starting afresh" in caplog.text
        assert repr(analysis.layers) == repr(tb.analyze(checkpoint, estimator=tb.Hill(0.3)).layers)

    def test_unwritable_file(self, checkpoint, tmp_path):
        with pytest.raises(AnalysisError, match="cannot write"):
            tb.analyze(checkpoint, resume=tmp_path / "nowhere" / "partial")

    def test_ctrl_c_on_the_command_line(self, tmp_path):
        path, out = tmp_path / "model.safetensors", tmp_path / "out.json"
        save_file({f"layers.{i}.weight": torch.randn(900 + i, 900) for i in range(60)}, path)
        command = [sys.executable, "-m", "tempbalance", "analyze", str(path), "--out", str(out), "--quiet"]
        partial = out.with_name("out.json.partial")
        status, errors, done = interrupted(command, partial)
        assert status == 130
        assert "go on" in errors
        assert not out.exists()
        assert 0 < done < 60
        subprocess.run(command, check=True)
        assert len(json.loads(out.read_text())["layers"]) == 60
        assert not partial.exists()
