"""Parameters that are no weight matrix are found by name, in live models and in state dicts."""

import pytest
import torch
from torch import nn

from tempbalance.layers import Select, find_weights


class Holder(nn.Module):
    """A module of unknown type with one parameter."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def both(name: str, *shape: int):
    """The parameter in a live model and in its state dict."""
    model = nn.ModuleDict({"mixer": Holder(name, *shape)})
    return model, model.state_dict()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("A_log", "state-space"),
        ("D", "state-space"),
        ("log_dt", "state-space"),
        ("time_decay", "state-space"),
        ("pos_bias_u", "bias"),
        ("attention_biases", "bias"),
        ("attn_mask", "mask"),
        ("weight_mask", "mask"),
        ("running_cov", "statistic"),
        ("mel_filters", "constant"),
        ("forward_basis_buffer", "constant"),
        ("_w3j_1_1_2", "constant"),
    ],
)
def test_parameters_that_are_no_matrix_are_skipped_even_with_embeddings(name, reason):
    for source in both(name, 16, 8):
        rows, skipped = find_weights(source, Select(embeddings=True))
        assert rows == []
        assert reason in skipped[0].reason


@pytest.mark.parametrize(
    "name",
    [
        *("rel_pos_h", "relative_position_bias_table", "pos_embed", "position_enc", "positional_embedding", "rpb"),
        *(
            "emb_rel_k",
            "mask_tokens",
            "query_tokens",
            "latents",
            "latent_query",
            "codevectors",
            "codebook",
            "embed_avg",
        ),
        *("scale_shift_table", "text_prompt", "prototypes", "freqs_cos"),
    ],
)
def test_tables_are_embeddings(name):
    for source in both(name, 16, 8):
        rows, skipped = find_weights(source)
        assert rows == []
        assert "embeddings=True" in skipped[0].reason
        assert [row.kind for row in find_weights(source, Select(embeddings=True))[0]] == ["embedding"]


@pytest.mark.parametrize(
    "name",
    ["W", "kernel", "w_query", "proj", "x_proj_weight", "text_projection", "weight_mean", "time_maa_w1", "tables"],
)
def test_other_matrices_are_analysed(name):
    for source in both(name, 16, 8):
        assert [row.name for row in find_weights(source)[0]] == [f"mixer.{name}"]


@pytest.mark.parametrize("name", ["codebook", "mask_tokens", "embed_audio_tokens", "row_embedder", "embedding_table"])
def test_layers_that_are_tables_are_embeddings_in_a_state_dict(name):
    assert find_weights({f"{name}.weight": torch.zeros(16, 8)})[0] == []


@pytest.mark.parametrize("name", ["embed_out", "class_embed", "patch_embed", "x_embedder", "linear_pos", "pos_proj"])
def test_layers_with_similar_names_are_linear_in_a_state_dict(name):
    assert [row.kind for row in find_weights({f"{name}.weight": torch.zeros(16, 8)})[0]] == ["linear"]


@pytest.mark.parametrize("name", ["patch_embedding", "patch_embed", "embeddings"])
def test_a_patch_convolution_is_no_embedding(name):
    (row,) = find_weights({f"{name}.weight": torch.zeros(16, 3, 8, 8)})[0]
    assert row.kind == "conv2d"


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("blk.0.ssm_a", (64, 16), "state-space parameter ssm_a"),
        ("blk.0.ssm_conv1d.weight", (64, 4), "depthwise"),
        ("blk.0.ssm_conv1d_q.weight", (64, 4), "depthwise"),
        ("blk.0.shortconv.conv.weight", (64, 3), "depthwise"),
        ("blk.0.time_mix_first.weight", (8, 64), "state-space parameter time_mix_first"),
        ("blk.0.time_mix_decay.weight", (8, 64), "state-space parameter time_mix_decay"),
        ("enc.blk.0.attn_rel_b.weight", (12, 32), "embeddings=True"),
    ],
)
def test_names_of_llama_cpp_that_are_no_matrix_are_skipped(name, shape, reason):
    rows, skipped = find_weights({name: torch.zeros(shape)})
    assert rows == []
    assert reason in skipped[0].reason


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.ssm_alpha.weight", (64, 16)),
        ("blk.0.ssm_x.weight", (64, 16)),
        ("blk.0.time_mix_decay_w1.weight", (64, 16)),
        ("blk.0.time_mix_key.weight", (64, 64)),
        ("a.conv1d.weight", (64, 64)),
    ],
)
def test_similar_names_of_llama_cpp_are_matrices(name, shape):
    assert [row.name for row in find_weights({name: torch.zeros(shape)})[0]] == [name]


def test_a_table_in_a_list_of_parameters_has_the_name_of_the_list():
    model = nn.ModuleDict({"a": nn.Module()})
    model["a"].pos_embeds = nn.ParameterList([torch.zeros(16, 8), torch.zeros(16, 8)])
    for source in (model, model.state_dict()):
        assert find_weights(source)[0] == []


def test_a_table_inside_a_block_is_in_no_block():
    layers = nn.ModuleList(nn.ModuleDict({"rel": Holder("rel_pos_h", 16, 8), "fc": nn.Linear(8, 8)}) for _ in range(2))
    rows, _ = find_weights(nn.ModuleDict({"layers": layers}), Select(embeddings=True))
    assert [(row.name, row.block) for row in rows[:2]] == [
        ("layers.0.rel.rel_pos_h", None),
        ("layers.0.fc.weight", "layers.0"),
    ]
