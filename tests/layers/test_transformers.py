"""Architectures of Transformers and PEFT, small and random: live, and from their saved checkpoints."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tempbalance.checkpoints import open_checkpoint
from tempbalance.layers import Select, find_weights

transformers = pytest.importorskip("transformers")
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "pad_token_id": 0}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = TEXT | SPECIAL | {"intermediate_size": 64, "num_key_value_heads": 2}


def build(model, config, **settings):
    torch.manual_seed(0)
    return getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()


MODELS = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT | {"intermediate_size": 64}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 12, "n_head": 4, "vocab_size": 100} | SPECIAL),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", LLAMA),
    "falcon": ("FalconForCausalLM", "FalconConfig", TEXT | SPECIAL),
    "convnext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", LLAMA | {"num_local_experts": 4, "head_dim": 8}),
}
# Transformers saves these under other names, or their experts one by one.
RENAMED = {
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", LLAMA | {"num_local_experts": 4}),
    "vit": (
        "ViTModel",
        "ViTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
}


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def described(rows):
    return [(row.name, row.kind, row.block, row.shape) for row in rows]


@pytest.mark.parametrize("name", MODELS | RENAMED)
def test_a_live_model_and_its_checkpoint_agree(name, tmp_path):
    model = build(*(MODELS | RENAMED)[name][:2], **(MODELS | RENAMED)[name][2])
    model.save_pretrained(tmp_path)
    live, left_live = find_weights(model)
    with open_checkpoint(tmp_path) as checkpoint:
        stored, left_stored = find_weights(checkpoint)
        assert described(stored) == described(live)
        assert all(torch.equal(a.load(), b.load()) for a, b in zip(live, stored, strict=True))
    assert left_stored == left_live


@pytest.mark.parametrize("name", MODELS)
def test_every_stored_matrix_is_a_row_or_skipped(name, tmp_path):
    model = build(*MODELS[name][:2], **MODELS[name][2])
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        rows, left = find_weights(checkpoint)
        expected = {name for name, info in checkpoint.tensors.items() if len(info.shape) >= 2}
    accounted = {row.name.partition(":")[0] for row in rows} | {name for name, _ in left}
    assert expected <= accounted


class TestFusedWeights:
    def row(self, model, name):
        return next(row for row in find_weights(model)[0] if row.name == name).load()

    def test_gpt2_is_transposed_and_split(self):
        model = build(*MODELS["gpt2"][:2], **MODELS["gpt2"][2])
        weight = model.transformer.h[0].attn.c_attn.weight
        assert torch.equal(self.row(model, "transformer.h.0.attn.c_attn.weight:k"), weight[:, 32:64])

    def test_gpt_neox_interleaves_by_head(self):
        settings = TEXT | SPECIAL | {"intermediate_size": 64}
        model = build("GPTNeoXForCausalLM", "GPTNeoXConfig", **settings)
        weight = model.gpt_neox.layers[0].attention.query_key_value.weight
        expected = weight.view(4, 3, 8, 32)[:, 1].reshape(32, 32)
        assert torch.equal(self.row(model, "gpt_neox.layers.0.attention.query_key_value.weight:k"), expected)

    def test_phi3_has_fewer_keys_than_queries(self):
        model = build(*MODELS["phi3"][:2], **MODELS["phi3"][2])
        assert self.row(model, "model.layers.0.self_attn.qkv_proj.weight:q").shape == (32, 32)
        assert self.row(model, "model.layers.0.self_attn.qkv_proj.weight:v").shape == (16, 32)

    def test_mixtral_experts_are_split_into_gate_and_up(self):
        model = build(*RENAMED["mixtral"][:2], **RENAMED["mixtral"][2])
        stack = model.model.layers[1].mlp.experts.gate_up_proj
        found = self.row(model, "model.layers.1.mlp.experts.gate_up_proj:2:up")
        assert torch.equal(found, stack[2, 64:])

    def test_gpt_oss_interleaves_gate_and_up(self):
        model = build(*MODELS["gpt_oss"][:2], **MODELS["gpt_oss"][2])
        stack = model.model.layers[0].mlp.experts.gate_up_proj
        assert torch.equal(self.row(model, "model.layers.0.mlp.experts.gate_up_proj:1:gate"), stack[1, :, ::2])


def test_a_tied_head_is_listed_once():
    model = build("LlamaForCausalLM", "LlamaConfig", **LLAMA, tie_word_embeddings=True)
    rows, left = find_weights(model, Select(embeddings=True))
    assert "model.embed_tokens.weight" in {row.name for row in rows}
    assert dict(left) == {"lm_head.weight": "tied to model.embed_tokens.weight"}


class TestTiedWeights:
    @pytest.fixture
    def folder(self, tmp_path):
        build("LlamaForCausalLM", "LlamaConfig", **LLAMA, tie_word_embeddings=True).save_pretrained(tmp_path)
        return tmp_path

    def heads(self, folder, value):
        change_tensors(folder, lambda t: t.update({"lm_head.weight": value(t["model.embed_tokens.weight"])}))
        return find_weights(open_checkpoint(folder), Select(embeddings=True))

    def test_a_head_that_is_stored_under_its_first_name_is_tied(self, folder):
        left = dict(find_weights(open_checkpoint(folder), Select(embeddings=True))[1])
        assert left == {"lm_head.weight": "tied to model.embed_tokens.weight"}

    def test_a_head_that_is_stored_twice_is_tied(self, folder):
        rows, left = self.heads(folder, lambda embedding: embedding.clone())
        assert rows[0].read.names == ("model.embed_tokens.weight", "lm_head.weight")
        assert dict(left) == {"lm_head.weight": "tied to model.embed_tokens.weight"}

    def test_a_head_with_other_values_is_not_tied(self, folder):
        rows, left = self.heads(folder, lambda embedding: embedding + 1)
        assert left == []
        assert torch.equal(rows[-1].load(), rows[0].load() + 1)

    def test_a_head_alone_on_disk_is_the_embedding(self, folder):
        def rename(tensors):
            tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

        change_tensors(folder, rename)
        rows, left = find_weights(open_checkpoint(folder), Select(embeddings=True))
        assert rows[0].name == "model.embed_tokens.weight"
        assert rows[0].load().shape == (100, 32)
        assert dict(left) == {"lm_head.weight": "tied to model.embed_tokens.weight"}


class TestConversion:
    """Experts that are stored one by one and stacked in the model."""

    @pytest.fixture
    def folder(self, tmp_path):
        build(*RENAMED["mixtral"][:2], **RENAMED["mixtral"][2]).save_pretrained(tmp_path)
        return tmp_path

    name = "model.layers.0.mlp.experts.gate_up_proj"

    def test_an_expert_that_is_missing_on_disk_costs_its_stack_alone(self, folder):
        change_tensors(folder, lambda t: t.pop("model.layers.0.block_sparse_moe.experts.1.w1.weight"))
        rows, left = find_weights(open_checkpoint(folder))
        assert "cannot be merged" in dict(left)[self.name]
        assert not [row for row in rows if row.name.startswith(self.name)]
        assert [row for row in rows if row.name.startswith("model.layers.1.mlp.experts.gate_up_proj")]

    @pytest.mark.parametrize("scale", [torch.full((1, 1), 2.0), torch.ones(5, 1)])
    def test_quantised_experts_are_read_and_scales_of_a_wrong_shape_cost_their_stack_alone(self, folder, scale):
        def quantise(tensors):
            for key in [key for key in tensors if ".layers.0." in key and ".w1." in key]:
                tensors[key] = tensors[key].to(torch.float8_e4m3fn)
                tensors[f"{key}_scale_inv"] = scale.clone()

        name = f"{self.name}:1:gate"
        plain = next(row for row in find_weights(open_checkpoint(folder))[0] if row.name == name).load()
        change_tensors(folder, quantise)
        rows, left = find_weights(open_checkpoint(folder))
        found = {row.name: row for row in rows if row.name.startswith(self.name)}
        if scale.numel() > 1:
            assert "fp8 with scales: its scales" in dict(left)[self.name]
            assert not found
        else:
            assert torch.equal(found[name].load(), 2 * plain.to(torch.float8_e4m3fn).float())
            assert found[name].quantisation == "float8_e4m3fn with scales, 8 bits"
        assert [row for row in rows if row.name.startswith("model.layers.1.mlp.experts.gate_up_proj")]

    def test_without_the_conversions_of_transformers_names_on_disk_stay(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
        names = [row.name for row in find_weights(open_checkpoint(folder))[0]]
        assert "model.layers.0.block_sparse_moe.experts.1.w1.weight" in names


class TestConfiguration:
    def test_a_base_model_has_its_own_names_and_no_head(self, tmp_path):
        model = build(*MODELS["bert"][:2], **MODELS["bert"][2])
        model.save_pretrained(tmp_path)
        rewrite_config(tmp_path, architectures=["BertModel"])
        rows, left = find_weights(open_checkpoint(tmp_path))
        assert described(rows) == described(find_weights(model.bert)[0])
        assert "not in BertModel" in dict(left)["classifier.weight"]

    def test_without_architectures_the_head_is_known_by_its_name(self, tmp_path):
        model = build(*MODELS["bert"][:2], **MODELS["bert"][2])
        model.save_pretrained(tmp_path)
        rewrite_config(tmp_path, architectures=None)
        assert [row.name for row in find_weights(open_checkpoint(tmp_path))[0]][-1] == "classifier.weight"

    def test_a_weight_that_is_not_on_disk_is_skipped(self, tmp_path):
        build(*MODELS["bert"][:2], **MODELS["bert"][2]).bert.save_pretrained(tmp_path)
        rewrite_config(tmp_path, architectures=["BertForSequenceClassification"])
        left = dict(find_weights(open_checkpoint(tmp_path))[1])
        assert "not in the checkpoint" in left["classifier.weight"]

    def test_a_weight_of_another_shape_is_skipped(self, tmp_path):
        build(*MODELS["bert"][:2], **MODELS["bert"][2]).save_pretrained(tmp_path)
        rewrite_config(tmp_path, intermediate_size=48)
        left = dict(find_weights(open_checkpoint(tmp_path))[1])
        assert "config.json says (48, 32)" in left["bert.encoder.layer.0.intermediate.dense.weight"]

    def test_an_architecture_that_is_not_the_checkpoint_s_falls_back_to_names(self, tmp_path):
        model = build(*MODELS["llama"][:2], **MODELS["llama"][2])
        model.save_pretrained(tmp_path)
        rewrite_config(tmp_path, architectures=["BertModel"], model_type="bert")
        rows, _ = find_weights(open_checkpoint(tmp_path))
        assert {row.name for row in rows} == {row.name for row in find_weights(model)[0]}

    def test_matrices_in_buffers_are_no_weights(self, tmp_path):
        model = build("IBertModel", "IBertConfig", **TEXT, intermediate_size=64, max_position_embeddings=64)
        model.save_pretrained(tmp_path)
        assert len([name for name, buffer in model.named_buffers() if buffer.ndim == 2]) > 10
        live, left_live = find_weights(model)
        stored, left = find_weights(open_checkpoint(tmp_path))
        assert described(stored) == described(live)
        assert left == left_live

    @pytest.mark.parametrize(
        "change", [{"architectures": ["NotAModel"]}, {"model_type": "nothing"}, {"hidden_size": "x"}]
    )
    def test_an_unknown_architecture_falls_back_to_names(self, tmp_path, change):
        model = build(*MODELS["bert"][:2], **MODELS["bert"][2])
        model.save_pretrained(tmp_path)
        rewrite_config(tmp_path, **change)
        rows, _ = find_weights(open_checkpoint(tmp_path))
        assert {row.name for row in rows} == {row.name for row in find_weights(model)[0]}

    @pytest.mark.parametrize("damaged", [False, True])
    def test_quantised_layers_have_their_names_in_the_model(self, tmp_path, damaged):
        def quantise(tensors):
            for key in [key for key in tensors if "_proj" in key]:
                rows, columns = tensors.pop(key).shape
                layer = key.removesuffix("weight")
                tensors[f"{layer}qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
                tensors[f"{layer}qzeros"] = torch.zeros(1, rows // 8, dtype=torch.int32)
                tensors[f"{layer}scales"] = torch.zeros(1, rows + damaged)
                tensors[f"{layer}g_idx"] = torch.zeros(columns, dtype=torch.int32)

        model = build(*MODELS["llama"][:2], **MODELS["llama"][2])
        model.save_pretrained(tmp_path)
        change_tensors(tmp_path, quantise)
        rows, left = find_weights(open_checkpoint(tmp_path))
        live = [row.name for row in find_weights(model)[0]]
        assert [row.name for row in rows] == (["lm_head.weight"] if damaged else live)
        assert [name for name, reason in left if reason.startswith("GPTQ: ")] == (live[:-1] if damaged else [])

    def test_wrappers_in_the_names_on_disk_are_left_out(self, tmp_path):
        def wrap(tensors):
            for key in list(tensors):
                tensors[f"module.{key}".replace("layers.0.", "layers.0._orig_mod.")] = tensors.pop(key)

        model = build(*MODELS["phi3"][:2], **MODELS["phi3"][2])
        model.save_pretrained(tmp_path)
        change_tensors(tmp_path, wrap)
        assert described(find_weights(open_checkpoint(tmp_path))[0]) == described(find_weights(model)[0])

    def test_fp8_with_scales_is_recognised_in_a_known_architecture(self, tmp_path):
        build(*MODELS["llama"][:2], **MODELS["llama"][2]).save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
        save_file(tensors, tmp_path / "model.safetensors")
        rows = {row.name: row.quantisation for row in find_weights(open_checkpoint(tmp_path))[0]}
        assert rows[name] == "float8_e4m3fn with scales, 8 bits"
        assert not any(rows[other] for other in rows if other != name)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft uses it
class TestLoRA:
    @pytest.fixture
    def adapted(self):
        peft = pytest.importorskip("peft")
        model = build(*MODELS["llama"][:2], **MODELS["llama"][2])
        config = peft.LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"], alpha_pattern={"layers.1.mlp.up_proj": 32}
        )
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        return model

    name = "model.layers.1.mlp.up_proj.weight"

    def row(self, source, **options):
        return next(row for row in find_weights(source, Select(**options))[0] if row.name == self.name)

    def layer(self, adapted):
        return adapted.base_model.model.model.layers[1].mlp.up_proj

    def update(self, adapted):
        layer = self.layer(adapted)
        return 32 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight

    @pytest.mark.parametrize("mode", ["merged", "update"])
    def test_an_adapter_folder_has_one_row_per_update(self, adapted, tmp_path, mode):
        adapted.save_pretrained(tmp_path)
        row = self.row(open_checkpoint(tmp_path), lora=mode)
        assert (row.kind, row.block) == ("lora", "model.layers.1")
        torch.testing.assert_close(row.load().float(), self.update(adapted).detach())

    def test_an_adapter_in_one_store_with_its_base_is_merged(self, adapted, tmp_path):
        adapted.save_pretrained(tmp_path)
        build(*MODELS["llama"][:2], **MODELS["llama"][2]).save_pretrained(tmp_path)
        expected = self.layer(adapted).base_layer.weight + self.update(adapted)
        torch.testing.assert_close(self.row(open_checkpoint(tmp_path)).load().float(), expected.detach())

    def test_lora_factors_without_their_scale_are_skipped(self, adapted):
        left = dict(find_weights(adapted.state_dict())[1])
        assert all("adapter_config.json" in reason for name, reason in left.items() if "lora_" in name)
        assert any("lora_A" in name for name in left)
