"""Comparisons of models: names, adapters, identical and resized weights, and what is said about alpha."""

import json
import math
from statistics import NormalDist

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import tempbalance as tb
from tempbalance.errors import AnalysisError

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def kinds(comparison):
    return [finding.kind for finding in comparison.findings]


def the(comparison, kind):
    return next(finding for finding in comparison.findings if finding.kind == kind)


def state(alphas=(2.2, 3.0, 4.0), size=80):
    return {
        f"layers.{i}.weight": tb.testing.matrix_with_spectrum(
            tb.testing.pareto_quantiles(size, alpha), (size, size), seed=i
        ).float()
        for i, alpha in enumerate(alphas)
    }


def moved(tensors, scale, only=""):
    generator = torch.Generator().manual_seed(1)
    return {
        name: w + scale * w.norm() / math.sqrt(w.numel()) * torch.randn(w.shape, generator=generator)
        if only in name
        else w.clone()
        for name, w in tensors.items()
    }


def gpt2(*, linear=False, square_only=False):
    """Layers that GPT-2 of Transformers stores as (in, out), or those as (out, in), with the same values."""
    conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"square": conv1d(40, 40)} | ({} if square_only else {"wide": conv1d(60, 40)}))
    if not linear:
        return model
    return {name: tensor.T.contiguous() for name, tensor in model.state_dict().items() if tensor.ndim == 2}


class TestTransposed:
    """Weights that one model stores the other way round."""

    def test_it_is_compared_with_the_transposed_weight(self):
        for before, after in [(gpt2(), gpt2(linear=True)), (gpt2(linear=True), gpt2())]:
            found = tb.compare(before, after)
            assert [(row.name, row.identical) for row in found.layers] == [
                ("square.weight", True), ("wide.weight", True)
            ]  # fmt: skip
            assert "reshaped" not in kinds(found)

    def test_a_state_dict_with_the_same_layout_is_compared_as_it_is(self):
        assert all(row.identical for row in tb.compare(gpt2(), gpt2().state_dict()).layers)

    @pytest.mark.parametrize("square_only", [True, False])
    def test_a_square_weight_that_may_be_transposed_is_not_compared(self, square_only):
        before = gpt2(square_only=square_only)
        found = tb.compare(before if square_only else before.state_dict(), gpt2(linear=True, square_only=square_only))
        assert (found.layers[0].name, math.isnan(found.layers[0].relative_change)) == ("square.weight", True)
        assert "square.weight cannot be compared: it is square" in the(found, "not_compared").message


class TestWeights:
    def test_rows_have_the_change_of_each_weight(self):
        before = state()
        after = moved(before, 0.01)
        rows = tb.compare(before, after).layers
        for row in rows:
            update = (after[row.name].double() - before[row.name].double()).numpy()
            assert row.relative_change == pytest.approx(
                float(torch.linalg.norm(torch.tensor(update)) / before[row.name].double().norm()), rel=1e-6
            )
            assert row.update_stable_rank > 10
        alphas = [layer.alpha for layer in tb.analyze(after).layers]
        assert [row.alpha_after for row in rows] == alphas

    def test_layers_that_did_not_move_are_identical_and_the_block_that_did_is_named(self):
        before = state()
        comparison = tb.compare(before, moved(before, 0.01, "layers.1"))
        assert [row.identical for row in comparison.layers] == [True, False, True]
        assert the(comparison, "identical").layers == ("layers.0.weight", "layers.2.weight")
        assert the(comparison, "moved_most").layers == ("layers.1.weight",)
        assert comparison.blocks["layers.1.weight"] == pytest.approx(0.01, rel=0.05)

    def test_the_fraction_of_zeros_of_both_models_is_told(self):
        dense = state()
        pruned = {name: torch.where(weight > 0, weight, 0) for name, weight in dense.items()}
        table = {"embed_tokens.weight": torch.zeros(64, 64)}
        zeros = sum(int((weight == 0).sum()) for weight in pruned.values()) / sum(w.numel() for w in pruned.values())
        finding = the(tb.compare(dense | table, pruned | table), "sparsity")
        assert finding.evidence == pytest.approx({"before": 0.0, "after": zeros})
        assert f"0.0% of the weights of the first model and {zeros:.1%} of those of the second" in finding.message
        assert finding.next_step == ""
        back = tb.compare(pruned, dense)
        assert "keep the zeros" in the(back, "sparsity").next_step
        assert [row.sparsity_before for row in back.layers] == pytest.approx(
            [float((weight == 0).double().mean()) for weight in pruned.values()]
        )
        assert "sparsity" not in kinds(tb.compare(dense, moved(dense, 0.01)))

    def test_two_equal_models_give_a_warning(self):
        comparison = tb.compare(state(), state())
        assert kinds(comparison) == ["identical"]
        assert comparison.findings[0].severity.value == "warning"
        assert "all 3 weight matrices are identical" in comparison.findings[0].message

    def test_a_cast_to_bfloat16_is_no_training(self):
        before = state()
        comparison = tb.compare(before, {name: w.bfloat16() for name, w in before.items()})
        assert the(comparison, "rounded").layers == tuple(before)
        assert "identical" not in kinds(comparison)
        assert "alpha_moved" not in kinds(comparison)

    def test_a_layer_that_was_initialised_again_is_found(self):
        before = state()
        again = state((4.0,), 80)["layers.0.weight"]
        comparison = tb.compare(
            before, before | {"layers.1.weight": again * before["layers.1.weight"].norm() / again.norm()}
        )
        assert comparison.findings[0].kind == "replaced"
        assert comparison.findings[0].layers == ("layers.1.weight",)

    def test_a_weight_that_became_nan_is_told(self):
        before = state()
        after = before | {"layers.1.weight": torch.full((80, 80), math.nan)}
        comparison = tb.compare(before, after)
        assert comparison.only_before == ["layers.1.weight"]
        assert "in the second model, 6400 of 6400 weights are NaN or Inf" in the(comparison, "not_compared").message
        assert "not_matched" not in kinds(comparison)

    def test_resized_embeddings_are_listed_and_the_rest_is_compared(self):
        before = state() | {"embeddings.weight": torch.randn(100, 80)}
        comparison = tb.compare(before, moved(state(), 0.1) | {"embeddings.weight": torch.randn(101, 80)})
        assert the(comparison, "reshaped").message.startswith(
            "embeddings.weight changed its shape from 100x80 to 101x80"
        )
        assert [row.name for row in comparison.layers if math.isfinite(row.relative_change)] == [*state()]

    def test_embeddings_have_a_change_and_no_alpha(self):
        before = state() | {"embeddings.weight": torch.randn(100, 80)}
        row = tb.compare(before, {n: 1.5 * w for n, w in before.items()}).layers[-1]
        assert (row.name, row.kind) == ("embeddings.weight", "embedding")
        assert row.relative_change == pytest.approx(0.5, rel=1e-6)
        assert math.isnan(row.delta)

    def test_a_live_model_and_files_are_compared(self, tmp_path, trained):
        save_file({name: tensor.clone() for name, tensor in trained.state_dict().items()}, tmp_path / "m.safetensors")
        rows = tb.compare(trained, tmp_path / "m.safetensors", select="[01].weight").layers
        assert [(row.name, row.identical) for row in rows] == [("0.weight", True), ("1.weight", True)]


class TestAlpha:
    def test_a_small_change_does_not_move_alpha(self):
        before = state()
        finding = the(tb.compare(before, moved(before, 1e-3)), "alpha_unchanged")
        assert finding.evidence["tested"] == 3
        assert finding.evidence["needed_z"] == pytest.approx(2.394, abs=1e-3)  # 5 % over 3 layers, two-sided
        assert abs(finding.evidence["largest_z"]) < 0.5

    def test_a_layer_with_another_tail_is_found(self):
        finding = the(tb.compare(state((2.2, 3.0, 4.0), 300), state((2.2, 3.0, 2.0), 300)), "alpha_moved")
        assert finding.layers == ("layers.2.weight",)
        assert "in 1 of them to a heavier tail" in finding.message

    def test_the_test_is_corrected_for_the_number_of_layers(self):
        """30 pairs of independent spectra with one true alpha."""
        generator = torch.Generator().manual_seed(0)

        def drawn():
            spectrum = torch.rand(100, generator=generator, dtype=torch.float64) ** (-1 / 2.0)
            return torch.diag(spectrum.sqrt())

        before, after = ({f"{i}.weight": drawn() for i in range(30)} for _ in range(2))
        comparison = tb.compare(tb.analyze(before), tb.analyze(after))
        assert max(abs(row.z) for row in comparison.layers) > NormalDist().inv_cdf(0.975)  # found without correction
        assert "alpha_unchanged" in kinds(comparison)

    def test_layers_of_another_shape_are_not_tested(self):
        comparison = tb.compare(tb.analyze(state(size=80)), tb.analyze(state(size=100)))
        assert all(math.isnan(row.z) for row in comparison.layers)
        assert "alpha_unchanged" not in kinds(comparison)


class TestNames:
    def test_a_prefix_is_found_and_said(self):
        before = state()
        after = {f"bert.{name}": tensor for name, tensor in moved(before, 0.01).items()} | {
            "head.weight": torch.ones(80, 80)
        }
        comparison = tb.compare(before, after)
        assert [row.name_before for row in comparison.layers] == [*before]
        assert "without the prefix 'bert.' of the second model" in the(comparison, "renamed").message
        assert comparison.only_after == ["head.weight"]
        assert the(comparison, "not_matched").severity.value == "note"
        assert len(tb.compare(tb.analyze(before), tb.analyze(after)).layers) == 3

    def test_layers_are_renamed(self):
        after = {name.replace("layers", "blocks"): tensor for name, tensor in state().items()}
        with pytest.raises(AnalysisError, match=r"--rename old\.=new\."):
            tb.compare(state(), after)
        assert len(tb.compare(state(), after, rename={"layers.": "blocks."}).layers) == 3

    def test_models_with_few_layers_in_common_give_a_warning(self):
        other = {f"other.{i}.weight": torch.randn(80, 80) for i in range(4)}
        comparison = tb.compare(state(), other | {"layers.0.weight": state()["layers.0.weight"]})
        assert the(comparison, "not_matched").severity.value == "warning"


class TestTransformers:
    def test_fused_weights_of_a_state_dict_are_compared_without_splitting(self):
        transformers = pytest.importorskip("transformers")
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=48, n_layer=1, n_head=4, vocab_size=60))
        comparison = tb.compare(model, model.state_dict())
        assert "transformer.h.0.attn.c_attn.weight" in comparison.only_after
        assert "Select(split=False)" in the(comparison, "not_matched").next_step
        whole = tb.compare(model, model.state_dict(), select=tb.Select(split=False))
        assert kinds(whole) == ["identical"]

    @pytest.fixture
    def base(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=100))
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    def classifier(self, base, vocabulary=100):
        import transformers

        model = transformers.BertForSequenceClassification.from_pretrained(base)
        if vocabulary != 100:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        return model

    def test_a_base_and_its_fine_tune_with_a_head(self, base, tmp_path):
        model = self.classifier(base, 103)
        with torch.no_grad():
            model.bert.encoder.layer[2].output.dense.weight.mul_(1.25)
        model.save_pretrained(tmp_path / "tuned")
        comparison = tb.compare(base, tmp_path / "tuned")
        assert "prefix 'bert.'" in the(comparison, "renamed").message
        assert the(comparison, "reshaped").layers == ("bert.embeddings.word_embeddings.weight",)
        changed = {row.name: row.relative_change for row in comparison.layers if not row.identical}
        assert changed.pop("bert.encoder.layer.2.output.dense.weight") == pytest.approx(0.25, rel=1e-6)
        assert list(changed) == ["bert.embeddings.word_embeddings.weight"]
        assert comparison.only_after == ["classifier.weight"]
        live = tb.compare(base, model)
        assert [row.relative_change for row in live.layers] == pytest.approx(
            [row.relative_change for row in comparison.layers], nan_ok=True
        )

    @pytest.mark.parametrize("given", ["folder", "live"])
    def test_an_adapter_is_merged_with_its_base(self, base, tmp_path, given):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(self.classifier(base), peft.LoraConfig(target_modules=["query"], r=3))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "adapter")
        source = base if given == "folder" else self.classifier(base)
        comparison = tb.compare(source, tmp_path / "adapter")
        assert "was merged with" in the(comparison, "adapter_merged").message
        merged = {name: p.detach().double() for name, p in model.merge_and_unload().named_parameters()}
        plain = {name: p.detach().double() for name, p in self.classifier(base).named_parameters()}
        changed = [row for row in comparison.layers if not row.identical]
        assert len(changed) == 3
        for row in changed:
            name = f"bert.{row.name.removeprefix('bert.')}"
            update = merged[name] - plain[name]
            assert row.relative_change == pytest.approx(float(update.norm() / plain[name].norm()), rel=1e-5)
            assert row.update_effective_rank <= 3 + 1e-5
            assert row.update_singular_values[3:] == (0.0,) * 5
        assert "lora" not in {row.kind for row in comparison.layers}

    def test_an_adapter_of_another_model_is_not_compared_silently(self, base, tmp_path):
        peft = pytest.importorskip("peft")
        model = torch.nn.Sequential(torch.nn.Linear(48, 48), torch.nn.Linear(48, 48))
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "1"], init_lora_weights=False))
        adapted.save_pretrained(tmp_path / "adapter")
        comparison = tb.compare(base, tmp_path / "adapter")
        assert the(comparison, "not_matched").layers[:2] == ("0.weight", "1.weight")

    def test_an_adapter_is_not_compared_with_an_analysis(self, base, tmp_path):
        peft = pytest.importorskip("peft")
        peft.get_peft_model(self.classifier(base), peft.LoraConfig(target_modules=["query"])).save_pretrained(
            tmp_path / "adapter"
        )
        with pytest.raises(AnalysisError, match="give its base model, not an analysis"):
            tb.compare(tb.analyze(base), tmp_path / "adapter")
        with pytest.raises(AnalysisError, match="update of an adapter without its base model"):
            tb.compare(tb.analyze(base), tb.analyze(tmp_path / "adapter"), rename={"": "bert."})


class TestAnalyses:
    def test_saved_analyses_are_loaded_and_a_model_is_analysed(self, tmp_path, trained):
        tb.analyze(trained).save(tmp_path / "a.json")
        for comparison in (
            tb.compare(tmp_path / "a.json", str(tmp_path / "a.json")),
            tb.compare(tmp_path / "a.json", trained),
        ):
            assert [row.delta for row in comparison.layers[:3]] == [0.0, 0.0, 0.0]
            assert comparison.layers[0].identical is None
            assert comparison.blocks == {}

    def test_an_option_without_effect_on_analyses_raises(self, trained):
        analysis = tb.analyze(trained)
        with pytest.raises(AnalysisError, match="estimator has no effect"):
            tb.compare(analysis, analysis, estimator="ks")


def test_a_comparison_of_weights_is_saved_in_every_format(tmp_path):
    before = state()
    comparison = tb.compare(before, moved(before, 0.01))
    for ending in ("json", "csv", "html"):
        comparison.save(tmp_path / f"c.{ending}")
    saved = json.loads((tmp_path / "c.json").read_text())
    assert [finding["kind"] for finding in saved["findings"]] == kinds(comparison)
    assert saved["layers"][0]["relative_change"] == comparison.layers[0].relative_change
    assert pd.read_csv(tmp_path / "c.csv")["relative_change"].tolist() == pytest.approx(
        [row.relative_change for row in comparison.layers]
    )


class TestQuantised:
    """One of two models is stored rounded, or both in different ways."""

    def rounded(self, tensors, levels=127):
        found = {}
        for name, weight in tensors.items():
            scale = weight.abs().amax(dim=1, keepdim=True) / levels
            found |= {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}
        return found

    @pytest.mark.parametrize(("turned", "which"), [(False, "second"), (True, "first")])
    def test_that_one_model_is_quantised_is_a_warning(self, turned, which):
        models = [state(), self.rounded(state())]
        finding = the(tb.compare(*(reversed(models) if turned else models)), "quantised")
        assert f"3 of 3 layers are quantised in the {which} model only (int8 with scales, 8 bits)" in finding.message
        assert (finding.severity.value, len(finding.layers)) == ("warning", 3)

    def test_so_it_is_for_saved_analyses_and_for_some_layers(self):
        mixed = state() | self.rounded({"layers.1.weight": state()["layers.1.weight"]})
        finding = the(tb.compare(tb.analyze(state()), tb.analyze(mixed)), "quantised")
        assert finding.layers == ("layers.1.weight",)

    def test_a_model_that_was_dequantised_does_not_differ_by_rounding(self):
        stored = self.rounded(state())
        whole = {name: stored[name] * stored[f"{name}_scale"] for name in state()}
        assert kinds(tb.compare(stored, whole)) == ["identical"]

    def test_two_formats_differ_and_one_is_no_finding(self):
        whole = {}
        for name, weight in state().items():
            fp8 = (weight / weight.abs().max() * 400).to(torch.float8_e4m3fn)
            whole |= {name: fp8, f"{name}_scale": weight.abs().max() / 400}
        finding = the(tb.compare(self.rounded(state()), whole), "quantised")
        assert "different formats (int8 with scales, 8 bits and float8_e4m3fn with scales, 8 bits)" in finding.message
        assert "quantised" not in kinds(tb.compare(self.rounded(state()), self.rounded(state())))
