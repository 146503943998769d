"""Folders and files with adapters: the rows and numbers of the live model, or the update, or the reason."""

import json
import logging
import sys

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tempbalance as tb
from adapted_models import LINEAR, MERGED, SIZES, adapted, config_of, largest, llama

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # PEFT uses it
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's advice on settings
]
Q = "model.layers.0.self_attn.q_proj.weight"
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}


def numbers(source, mode="merged", **options):
    found = tb.analyze(source, select=tb.Select(lora=mode, **options)).layers
    return {row.name: (row.kind, row.block, row.shape, pytest.approx(row.lambda_max, rel=1e-6)) for row in found}


def reasons(source, **options):
    return {skipped.name: skipped.reason for skipped in tb.analyze(source, **options).skipped}


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 48, "n_inner": 48, "n_layer": 1, "n_head": 4, "vocab_size": 60, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **SPECIAL)).eval()


def mixtral():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, **SPECIAL, num_key_value_heads=2, num_local_experts=3)
    return transformers.MixtralForCausalLM(config).eval()


EXPERTS = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
MORE = {
    "rslora": (llama, peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, **LINEAR)),
    "patterns": (
        llama,
        peft.LoraConfig(r=4, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.mlp.up_proj": 32}, **LINEAR),
    ),
    "dora": (llama, peft.LoraConfig(r=4, use_dora=True, **LINEAR)),
    "lora with bias": (llama, peft.LoraConfig(r=4, lora_bias=True, **LINEAR)),
    "pissa": (llama, peft.LoraConfig(r=4, init_lora_weights="pissa", **LINEAR)),
    "olora": (llama, peft.LoraConfig(r=4, init_lora_weights="olora", **LINEAR)),
    "head": (llama, peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"])),
    "embedding": (llama, peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])),
    "head in full": (llama, peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tokens": (llama, peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2])),
    "conv1d": (gpt2, peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "conv1d ia3": (gpt2, peft.IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"])),
    "tied table": (gpt2, peft.LoraConfig(r=4, target_modules=["wte", "c_fc"], fan_in_fan_out=True)),
    "experts": (mixtral, peft.LoraConfig(r=4, **EXPERTS)),
}


def saved(folder, base, config, *, beside=True):
    """A live model with an adapter, saved in a folder, with its base model beside it or not."""
    if beside:
        base().save_pretrained(folder)
    model = adapted(base(), config)
    model.save_pretrained(folder)
    return model


class TestWithTheBaseModel:
    @pytest.mark.parametrize("method", MERGED)
    def test_every_method_has_the_rows_and_numbers_of_the_live_model(self, method, tmp_path):
        model = saved(tmp_path, llama, config_of(method))
        random_state = torch.get_rng_state()
        for mode in ("merged", "update"):
            assert numbers(tmp_path, mode, embeddings=True) == numbers(model, mode, embeddings=True)
        assert torch.equal(random_state, torch.get_rng_state())

    @pytest.mark.parametrize("case", MORE)
    def test_variants_have_the_rows_and_numbers_of_the_live_model(self, case, tmp_path):
        base, config = MORE[case]
        model = saved(tmp_path, base, config)
        if config.peft_type == "LORA" and config.init_lora_weights in {"pissa", "olora"}:
            model = peft.PeftModel.from_pretrained(base(), tmp_path)  # which changes the base weights again
        for mode in ("merged", "update"):
            assert numbers(tmp_path, mode, embeddings=True) == numbers(model, mode, embeddings=True)

    def test_a_weight_that_olora_changes_is_the_same_when_it_is_selected(self, tmp_path):
        saved(tmp_path, *MORE["olora"])
        (row,) = tb.analyze(tmp_path, select=Q).layers  # reads all weights once more, to tell the roles
        assert row.alpha == next(other.alpha for other in tb.analyze(tmp_path).layers if other.name == row.name)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_base_in_half_precision(self, dtype, tmp_path):
        model = saved(tmp_path, lambda: llama().to(dtype), config_of("LORA"))
        assert numbers(tmp_path) == numbers(model)

    def test_an_adapter_of_a_model_with_another_head_is_put_on_the_layers_that_the_base_has(self, tmp_path):
        torch.manual_seed(0)
        sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
        config = transformers.BertConfig(**sizes, pad_token_id=0)
        full = transformers.BertForSequenceClassification(config).eval()
        full.bert.save_pretrained(tmp_path)
        model = adapted(full, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]))
        model.save_pretrained(tmp_path)
        live = {name.removeprefix("bert."): row[3] for name, row in numbers(model).items()}
        assert {name: row[3] for name, row in numbers(tmp_path).items()} == live

    def test_factors_and_copies_are_skipped_or_merged_but_no_rows(self, tmp_path):
        base = {row.name for row in tb.analyze(llama()).layers}
        saved(tmp_path, llama, peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
        analysis = tb.analyze(tmp_path)
        assert {row.name for row in analysis.layers} == base

    def test_a_file_that_lacks_a_factor_gives_a_reason_and_no_number(self, tmp_path):
        saved(tmp_path, llama, peft.LoraConfig(r=4, **LINEAR))
        path = tmp_path / "adapter_model.safetensors"
        tensors = {name: tensor for name, tensor in load_file(path).items() if not ("q_proj" in name and "_B" in name)}
        save_file(tensors, path)
        assert "not in the file" in reasons(tmp_path)[Q]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"peft_type": "NEWER"}, "NEWER"),
            ({"peft_type": "XLORA"}, "XLORA"),
            ({"peft_type": None}, "None"),
            ({"a_setting_to_come": 3}, "a_setting_to_come"),
            ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
            ({"r": 7}, "PEFT cannot put it"),
            ({"r": 10**9}, "PEFT cannot put it"),  # memory for more parameters than the base model has is never used
            ({"target_modules": ["nothing"]}, "PEFT cannot put it"),
        ],
        ids=str,
    )
    def test_settings_that_peft_cannot_use_give_a_reason_and_no_number(self, change, expected, tmp_path):
        saved(tmp_path, llama, peft.LoHaConfig(r=4, use_effective_conv2d=False, **LINEAR))
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        analysis = tb.analyze(tmp_path)
        skipped = {s.name: s.reason for s in analysis.skipped}
        rows = {row.name: row.lambda_max for row in analysis.layers}
        if Q in rows:  # the factors tell the update without PEFT
            assert rows[Q] != pytest.approx(tb.analyze(llama(), select=Q).layers[0].lambda_max)
        else:
            assert expected in skipped[Q]

    def test_settings_that_name_code_or_files_are_not_used(self, tmp_path):
        model = saved(tmp_path, llama, peft.LoraConfig(r=4, **LINEAR))
        path = tmp_path / "adapter_config.json"
        unsafe = {"megatron_core": "antigravity", "megatron_config": {}, "auto_mapping": {"base_model_class": "a.b"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | unsafe | {"base_model_name_or_path": "/etc"}))
        assert numbers(tmp_path) == numbers(model)

    @pytest.mark.parametrize("method", ["LORA", "OFT", "VBLORA"])
    def test_without_peft_no_number_is_that_of_the_base_weight(self, method, tmp_path, monkeypatch):
        live = numbers(saved(tmp_path, llama, config_of(method)))
        monkeypatch.setitem(sys.modules, "peft", None)
        found = numbers(tmp_path)
        assert found == {name: live[name] for name in found}
        assert Q not in found
        assert "pip install" in reasons(tmp_path)[Q]

    def test_a_plain_model_without_a_configuration_has_its_updates_added(self, tmp_path):
        torch.manual_seed(0)
        base = nn.ModuleDict({"a": nn.Linear(24, 32), "b": nn.Linear(32, 32)})
        save_file(base.state_dict(), tmp_path / "model.safetensors")
        model = adapted(base, peft.LoraConfig(r=4, target_modules=["a", "b"]))
        model.save_pretrained(tmp_path)
        disk = {name: row[3] for name, row in numbers(tmp_path).items()}
        assert disk == {name: row[3] for name, row in numbers(model).items()}


class TestAlone:
    """An adapter without its base model: its updates."""

    @pytest.mark.parametrize("case", ["rslora", "patterns", "embedding", "conv1d", "experts"])
    def test_the_updates_are_those_of_the_live_model(self, case, tmp_path):
        model = saved(tmp_path, *MORE[case], beside=False)
        live = numbers(model, "update", embeddings=True)
        disk = numbers(tmp_path, "update", embeddings=True)
        if case == "conv1d":  # that c_attn is fused is not in the adapter
            live = {name.partition(":")[0]: row for name, row in numbers(model, "update", split=False).items()}
        assert disk == live

    @pytest.mark.parametrize("config", [peft.LoHaConfig(r=4, **LINEAR), peft.LoKrConfig(r=4, **LINEAR)])
    def test_lycoris_methods_have_their_updates(self, config, tmp_path):
        model = saved(tmp_path, llama, config, beside=False)
        assert numbers(tmp_path, "update") == numbers(model, "update")

    def test_a_convolution_has_its_update_per_kernel_tap(self, tmp_path):
        torch.manual_seed(0)
        net = nn.ModuleDict({"conv": nn.Conv2d(8, 12, 3), "conv1": nn.Conv1d(8, 12, 3)})
        model = adapted(net, peft.LoraConfig(r=4, target_modules=["conv", "conv1"]))
        model.save_pretrained(tmp_path)
        assert numbers(tmp_path, "update") == numbers(model, "update")

    def test_without_its_class_gate_and_up_of_experts_are_one_row(self, tmp_path):
        saved(tmp_path, *MORE["experts"], beside=False)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": None}))
        names = list(numbers(tmp_path, "update"))
        assert [name.rpartition("experts.")[2] for name in names] == [
            f"{part}:{expert}" for part in ("gate_up_proj", "down_proj") for expert in range(3)
        ]

    def test_the_log_says_which_base_model_to_put_beside_it(self, tmp_path, caplog):
        saved(tmp_path, llama, peft.LoraConfig(r=4, **LINEAR), beside=False)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/base"}))
        with caplog.at_level(logging.WARNING, logger="tempbalance"):
            tb.analyze(tmp_path)
        assert "org/base" in caplog.text

    @pytest.mark.parametrize("method", [m for m in MERGED if m not in {"LORA", "LOHA", "LOKR"}])
    def test_other_methods_are_skipped_and_name_the_base_model(self, method, tmp_path):
        saved(tmp_path, llama, config_of(method), beside=False)
        stored = load_file(tmp_path / "adapter_model.safetensors")
        matrices = sum(tensor.ndim > 1 for tensor in stored.values())
        if not matrices:
            with pytest.raises(tb.TempBalanceError, match="no weight matrix"):
                tb.analyze(tmp_path)
            return
        analysis = tb.analyze(tmp_path, select=tb.Select(embeddings=True))
        assert not analysis.layers
        assert len(analysis.skipped) == matrices

    @pytest.mark.parametrize("mode", ["merged", "update"])
    def test_a_head_that_is_trained_in_full_is_a_row_and_no_update(self, mode, tmp_path):
        model = saved(tmp_path, *MORE["head in full"], beside=False)
        found = numbers(tmp_path, mode)
        assert ("lm_head.weight" in found) == (mode == "merged")
        if mode == "merged":
            assert found["lm_head.weight"] == numbers(model)["lm_head.weight"]

    def test_dora_alone_is_skipped(self, tmp_path):
        saved(tmp_path, *MORE["dora"], beside=False)
        analysis = tb.analyze(tmp_path)
        assert not analysis.layers
        assert all("use_dora" in skipped.reason for skipped in analysis.skipped)


class TestStateDict:
    """The state dict of a model with an adapter: what is applied is not in it."""

    @pytest.mark.parametrize("method", MERGED)
    def test_what_an_adapter_changes_is_skipped_and_the_rest_is_analysed(self, method):
        model = adapted(llama(), config_of(method))
        analysis = tb.analyze(model.state_dict())
        live = {row.name: row.lambda_max for row in tb.analyze(model).layers}
        changed = {row.name for row in tb.analyze(model, select=tb.Select(lora="update")).layers}
        assert {row.name for row in analysis.layers} == live.keys() - changed
        assert all(row.lambda_max == pytest.approx(live[row.name]) for row in analysis.layers)
        assert changed <= {skipped.name for skipped in analysis.skipped}

    def test_copies_that_are_trained_in_full_take_the_place_of_the_original(self):
        model = adapted(llama(), MORE["head in full"][1])
        live = {row.name: row.lambda_max for row in tb.analyze(model).layers}
        found = {row.name: row.lambda_max for row in tb.analyze(model.state_dict()).layers}
        assert found["lm_head.weight"] == pytest.approx(live["lm_head.weight"])
        assert sum("lm_head" in name for name in found) == 1


def kohya(**parts):
    """A file of one layer in the names of kohya's scripts."""
    return {f"lora_unet_mid_block_attn_to_q.{key}": tensor for key, tensor in parts.items()}


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class TestDiffusion:
    """LoRA files of diffusion models."""

    def check(self, tensors, expected, tmp_path):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
        for source in (tensors, tmp_path / "lora.safetensors"):
            (row,) = tb.analyze(source).layers
            assert (row.kind, row.shape) == ("lora", tuple(expected.shape))
            assert row.lambda_max == pytest.approx(largest(expected.double().numpy()), rel=1e-5)

    @pytest.mark.parametrize("alpha", [None, 2.0])
    def test_a_linear_layer_has_its_product_times_alpha_over_rank(self, alpha, tmp_path):
        down, up = normal(4, 24), normal(32, 4)
        tensors = kohya(**{"lora_down.weight": down, "lora_up.weight": up})
        if alpha is not None:
            tensors |= kohya(alpha=torch.tensor(alpha))
        self.check(tensors, (alpha or 4.0) / 4 * up @ down, tmp_path)

    def test_a_convolution_has_a_product_per_kernel_tap(self, tmp_path):
        down, up = normal(4, 8, 3, 3), normal(12, 4, 1, 1)
        expected = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        self.check(kohya(**{"lora_down.weight": down, "lora_up.weight": up}), expected, tmp_path)

    def test_a_convolution_of_three_factors(self, tmp_path):
        down, mid, up = normal(4, 8, 1, 1), normal(4, 4, 3, 3), normal(12, 4, 1, 1)
        expected = torch.einsum("os,srkl,ri->oikl", up[..., 0, 0], mid, down[..., 0, 0])
        parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
        self.check(kohya(**parts), expected, tmp_path)

    @pytest.mark.parametrize("whole", [True, False])
    def test_lokr_is_a_kronecker_product(self, whole, tmp_path):
        first = {"lokr_w1": normal(4, 6)} if whole else {"lokr_w1_a": normal(4, 2), "lokr_w1_b": normal(2, 6)}
        one = first["lokr_w1"] if whole else first["lokr_w1_a"] @ first["lokr_w1_b"]
        second = {"lokr_w2_a": normal(8, 2), "lokr_w2_b": normal(2, 5)}
        two = second["lokr_w2_a"] @ second["lokr_w2_b"]
        tensors = kohya(**first, **second, alpha=torch.tensor(1.0))
        self.check(tensors, torch.kron(one, two) / 2, tmp_path)

    def test_lokr_of_two_whole_factors_ignores_alpha(self, tmp_path):
        tensors = kohya(lokr_w1=normal(4, 6), lokr_w2=normal(8, 5), alpha=torch.tensor(7.0))
        self.check(tensors, torch.kron(normal(4, 6), normal(8, 5)), tmp_path)

    def test_loha_is_a_product_of_products(self, tmp_path):
        parts = [normal(32, 4), normal(4, 24), normal(32, 4) + 1, normal(4, 24) + 1]
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        expected = (parts[0] @ parts[1]) * (parts[2] @ parts[3]) / 4
        self.check(kohya(**dict(zip(names, parts, strict=True)), alpha=torch.tensor(1.0)), expected, tmp_path)

    @pytest.mark.parametrize(
        ("stored", "layer"),
        [
            ("unet.down.attn1.processor.to_q_lora", "unet.down.attn1.to_q"),
            ("text_encoder.self_attn.q_proj.lora_linear_layer", "text_encoder.self_attn.q_proj"),
            ("single_blocks.0.processor.qkv_lora", "single_blocks.0.qkv"),
            ("double_blocks.0.processor.qkv_lora1", "double_blocks.0.qkv1"),  # XLabs: of the image
            ("double_blocks.0.processor.qkv_lora2", "double_blocks.0.qkv2"),  # of the text
        ],
    )
    def test_names_of_layers_have_no_adapter_in_them(self, stored, layer):
        down, up = normal(4, 24), normal(32, 4)
        (row,) = tb.analyze({f"{stored}.down.weight": down, f"{stored}.up.weight": up}).layers
        assert (row.name, row.shape) == (f"{layer}.weight", (32, 24))
        assert row.lambda_max == pytest.approx(largest((up @ down).double().numpy()), rel=1e-5)

    def test_a_full_difference_is_the_update(self, tmp_path):
        self.check(kohya(diff=normal(24, 32)), normal(24, 32), tmp_path)

    @pytest.mark.parametrize(
        ("tensors", "reason"),
        [
            ({"fc.lora_A.weight": normal(4, 24), "fc.lora_B.weight": normal(32, 4)}, "adapter_config.json"),
            (
                {"fc.lora_A": normal(4, 24), "fc.lora_B": normal(32, 4), "fc.weight": normal(32, 24)},
                "adapter_config.json",
            ),
            ({"fc.lora_down.weight": normal(4, 24)}, "not a product"),
            ({"fc.lora_down.weight": normal(4, 24), "fc.lora_up.weight": normal(32, 5)}, "do not fit"),
            (
                {
                    "fc.lora_down.weight": normal(4, 24),
                    "fc.lora_up.weight": normal(32, 4),
                    "fc.dora_scale": normal(32, 1),
                },
                "dora_scale",
            ),
            (
                {"a_conv.hada_w1_a": normal(8, 2), "a_conv.hada_w1_b": normal(2, 36), "a_conv.hada_w2_a": normal(8, 2)}
                | {"a_conv.hada_w2_b": normal(2, 36)},
                "kernel",
            ),
            ({"fc.oft_blocks": normal(4, 8, 8)}, "not a product"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_not_told_is_skipped_with_the_reason(self, tensors, reason):
        analysis = tb.analyze(tensors)
        assert not analysis.layers
        assert all(reason in skipped.reason for skipped in analysis.skipped)
        assert {skipped.name for skipped in analysis.skipped} == tensors.keys()

    def test_an_update_without_its_base_keeps_the_rank_of_its_factors(self):
        tensors = kohya(**{"lora_down.weight": normal(4, 24), "lora_up.weight": normal(32, 4)})
        (row,) = tb.analyze(tensors, estimator=tb.Hill(min_eigenvalues=2)).layers
        assert row.num_tail == 2


def test_prompts_of_prompt_tuning_are_no_rows(tmp_path):
    llama().save_pretrained(tmp_path)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    analysis = tb.analyze(tmp_path)
    assert {row.name for row in analysis.layers} == {row.name for row in tb.analyze(llama()).layers}
    assert any("prompt" in skipped.name for skipped in analysis.skipped)


def test_numpy_agrees_with_a_merged_adapter_of_a_folder(tmp_path):
    model = saved(tmp_path, llama, peft.LoraConfig(r=4, **LINEAR))
    weight = model.merge_and_unload().get_parameter(Q).detach().double().numpy()
    (row,) = tb.analyze(tmp_path, select=Q).layers
    assert row.lambda_max == pytest.approx(np.linalg.norm(weight, 2) ** 2, rel=1e-5)
