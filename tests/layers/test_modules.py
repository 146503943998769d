"""Every kind of layer of a live model has the expected rows."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tempbalance.errors import SelectionError
from tempbalance.layers import Select, find_weights
from tempbalance.spectra.matrices import Layout, as_matrices


def rows(model, **options):
    return find_weights(model, Select(**options))[0]


def names(model, **options):
    return [row.name for row in rows(model, **options)]


def skipped(model, **options):
    return dict(find_weights(model, Select(**options))[1])


@pytest.mark.parametrize(
    ("layer", "kind", "matrices"),
    [
        (nn.Linear(4, 6), "linear", (1, 6, 4)),
        (nn.Bilinear(3, 4, 5), "linear", (5, 3, 4)),
        (nn.Conv1d(4, 6, 3), "conv1d", (3, 6, 4)),
        (nn.Conv1d(4, 6, 16), "conv1d", (16, 6, 4)),
        (nn.Conv2d(4, 6, (3, 5)), "conv2d", (15, 6, 4)),
        (nn.Conv3d(4, 6, 2), "conv3d", (8, 6, 4)),
        (nn.ConvTranspose1d(4, 6, 3), "conv_transpose1d", (3, 4, 6)),
        (nn.ConvTranspose2d(4, 6, 3), "conv_transpose2d", (9, 4, 6)),
        (nn.ConvTranspose3d(4, 6, 2), "conv_transpose3d", (8, 4, 6)),
    ],
)
def test_every_layer_type_has_its_kind_and_matrices(layer, kind, matrices):
    (row,) = rows(nn.Sequential(layer))
    assert (row.name, row.kind, row.shape) == ("0.weight", kind, tuple(layer.weight.shape))
    assert as_matrices(row.load(), row.layout).shape == matrices


def test_biases_and_norms_are_not_listed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4))
    assert find_weights(model)[1] == []
    assert names(model) == ["0.weight"]


class Attention(nn.Module):
    """A module with the weight of ``MultiheadAttention``, as open_clip has one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(24, 8))


def test_a_weight_with_the_name_of_multihead_attention_has_its_parts():
    model = nn.ModuleDict({"attn": Attention()})
    for source in (model, model.state_dict()):
        assert names(source) == [f"attn.in_proj_weight:{part}" for part in "qkv"]
        assert {row.kind for row in rows(source)} == {"attention"}


class Experts(nn.Module):
    """Experts in one matrix, as DBRX has them."""

    def __init__(self) -> None:
        super().__init__()
        self.moe_num_experts = 3
        self.w1 = nn.Parameter(torch.randn(3 * 8, 4))


@pytest.mark.parametrize("split", [True, False])
def test_experts_in_one_matrix_have_a_row_each(split):
    model = nn.ModuleDict({"experts": Experts()})
    assert names(model, split=split) == [f"experts.w1:{expert}" for expert in range(3)]


def test_a_depthwise_convolution_is_skipped():
    assert "vector" in skipped(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8)))["0.weight"]


class TestEmbeddings:
    def test_embeddings_are_skipped_by_default_with_a_reason(self):
        assert "embeddings=True" in skipped(nn.Sequential(nn.Embedding(9, 4)))["0.weight"]

    def test_embeddings_are_listed_on_request(self):
        assert names(nn.Sequential(nn.Embedding(9, 4)), embeddings=True) == ["0.weight"]

    def test_a_position_parameter_is_skipped_as_an_embedding(self):
        model = nn.Module()
        model.pos_embed = nn.Parameter(torch.zeros(1, 10, 4))
        assert "embedding" in skipped(model)["pos_embed"]


class TestRecurrentLayers:
    def test_an_lstm_is_split_by_gate(self):
        lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        found = rows(lstm)
        assert len(found) == 2 * 2 * 2 * 4
        assert [row.name for row in found[:4]] == [f"weight_ih_l0:{gate}" for gate in "ifgo"]
        assert torch.equal(found[1].load(), lstm.weight_ih_l0[5:10])
        assert found[0].kind == "rnn"

    def test_a_gru_is_split_into_three_gates(self):
        assert [name.partition(":")[2] for name in names(nn.GRU(6, 5))] == list("rznrzn")

    def test_a_plain_rnn_is_not_split(self):
        assert names(nn.RNN(6, 5)) == ["weight_ih_l0", "weight_hh_l0"]

    def test_the_projection_of_an_lstm_is_listed(self):
        assert "weight_hr_l0" in names(nn.LSTM(6, 5, proj_size=3))

    def test_an_lstm_cell_is_split_by_gate(self):
        assert len(names(nn.LSTMCell(6, 5))) == 8

    def test_an_lstm_is_not_split_on_request(self):
        assert names(nn.LSTM(6, 5), split=False) == ["weight_ih_l0", "weight_hh_l0"]


class TestMultiheadAttention:
    def test_the_fused_projection_of_attention_is_split(self):
        attention = nn.MultiheadAttention(8, 2)
        found = {row.name: row for row in rows(attention)}
        assert list(found) == ["in_proj_weight:q", "in_proj_weight:k", "in_proj_weight:v", "out_proj.weight"]
        assert torch.equal(found["in_proj_weight:k"].load(), attention.in_proj_weight[8:16])

    def test_separate_projections_of_attention_are_listed(self):
        attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
        assert names(attention) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


class TestOtherParameters:
    def test_a_complex_spectral_convolution_is_one_row(self):
        model = nn.Module()
        model.weights1 = nn.Parameter(torch.zeros(3, 4, 5, 6, dtype=torch.cfloat))
        (row,) = rows(model)
        assert (row.kind, row.layout) == ("spectral_conv", Layout.TAPS)
        assert as_matrices(row.load(), row.layout).shape == (30, 3, 4)

    def test_the_spectral_convolution_of_neuraloperator_is_one_row(self):
        convolution = pytest.importorskip("neuralop.layers.spectral_convolution")
        (row,) = rows(nn.Sequential(convolution.SpectralConv(4, 6, n_modes=(8, 8))))
        assert row.kind == "spectral_conv"
        assert row.load().is_complex()
        assert as_matrices(row.load(), row.layout).shape[1:] == (4, 6)

    def test_stacked_experts_get_a_row_each(self):
        model = nn.Module()
        model.experts = nn.Module()
        model.experts.down_proj = nn.Parameter(torch.randn(3, 4, 5))
        found = rows(model)
        assert [row.name for row in found] == [f"experts.down_proj:{i}" for i in range(3)]
        assert torch.equal(found[2].load(), model.experts.down_proj[2])

    def test_a_matrix_in_a_module_of_unknown_type_is_listed(self):
        model = nn.Module()
        model.mixing = nn.Parameter(torch.zeros(5, 6))
        assert [row.kind for row in rows(model)] == ["parameter"]

    def test_an_ambiguous_shape_is_skipped_with_advice(self):
        model = nn.Module()
        model.table = nn.Parameter(torch.zeros(5, 6, 7))
        assert "unknown type" in skipped(model)["table"]

    def test_tied_weights_are_listed_once(self):
        model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
        model["b"].weight = model["a"].weight
        assert names(model) == ["a.weight"]
        assert skipped(model) == {"b.weight": "tied to a.weight"}

    def test_a_matrix_that_is_an_embedding_anywhere_is_an_embedding(self):
        model = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "tokens": nn.Embedding(9, 4)})
        model["head"].weight = model["tokens"].weight
        assert names(model) == []
        assert skipped(model)["head.weight"] == "tied to tokens.weight"
        assert names(model, embeddings=True) == ["tokens.weight"]

    def test_a_vector_with_an_axis_of_size_1_is_skipped(self):
        model = nn.Module()
        model.pointer = nn.Parameter(torch.zeros(1, 7))
        assert "a vector" in skipped(model)["pointer"]

    def test_a_layer_with_weight_norm_has_its_effective_weight(self):
        layer = parametrizations.weight_norm(nn.Linear(4, 6))
        (row,) = rows(nn.Sequential(layer))
        assert row.name == "0.weight"
        torch.testing.assert_close(row.load(), layer.weight.detach())

    def test_an_integer_parameter_is_skipped(self):
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
        assert "uint8" in skipped(model)["weight"]

    def test_a_parameter_on_the_meta_device_is_skipped(self):
        with torch.device("meta"):
            model = nn.Linear(4, 4)
        assert "no data" in skipped(model)["weight"]

    def test_a_lazy_module_is_skipped(self):
        assert "forward pass" in skipped(nn.Sequential(nn.LazyLinear(4)))["0.weight"]

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile uses it
    def test_names_have_no_prefix_of_data_parallel_or_compile(self):
        assert names(nn.DataParallel(nn.Sequential(nn.Linear(3, 3)))) == ["0.weight"]
        assert names(torch.compile(nn.Sequential(nn.Linear(3, 3)))) == ["0.weight"]


class Stack(nn.Module):
    """Two blocks behind a table, which can be scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(9, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wte(x)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_module_has_the_rows_of_the_module():
    script = torch.jit.script(Stack())
    expected = [(row.name, row.kind, row.block) for row in rows(Stack())]
    assert [(row.name, row.kind, row.block) for row in rows(script)] == expected
    inside = rows(nn.ModuleDict({"net": script}))
    assert [(row.name, row.block) for row in inside] == [(f"net.{name}", f"net.{block}") for name, _, block in expected]


class TestBlocks:
    @pytest.mark.parametrize(
        ("path", "block"),
        [
            ("encoder.layer.0.attention.self.query", "encoder.layer.0"),
            ("model.layers.10.mlp.experts.3.w1", "model.layers.10"),
            ("h.3.attn.c_attn", "h.3"),
            ("encoder.block.0.layer.1.DenseReluDense.wi", "encoder.block.0"),
            ("layers.0.blocks.1.attn.qkv", "layers.0.blocks.1"),
            ("layer1.0.conv1", "layer1.0"),
            ("features.3", None),
            ("pooler.dense", None),
        ],
    )
    def test_the_block_of_a_weight_follows_from_its_name(self, path, block):
        (row,) = rows({f"{path}.weight": torch.zeros(4, 4)})
        assert row.block == block

    def test_a_numbered_child_of_a_module_that_is_not_a_list_is_not_a_block(self):
        model, inner = nn.Module(), nn.Module()
        inner.add_module("0", nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}))
        model.parts = inner
        assert {row.block for row in rows(model)} == {None}


class TestSelection:
    model = nn.ModuleDict(
        {"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4), "attention": nn.MultiheadAttention(4, 1)}
    )

    def test_select_includes_and_excludes_by_glob(self):
        assert names(self.model, include=("*coder*",), exclude=("enc*",)) == ["decoder.weight"]

    def test_select_takes_one_part_or_all_parts_of_a_fused_weight(self):
        assert names(self.model, include=("*:q",)) == ["attention.in_proj_weight:q"]
        assert len(names(self.model, include=("*in_proj_weight",))) == 3

    @pytest.mark.parametrize("options", [{"include": ("nothing.*",)}, {"exclude": ("nothing.*",)}])
    def test_a_pattern_that_matches_no_weight_raises_with_the_known_names(self, options):
        with pytest.raises(SelectionError, match=r"known names: encoder\.weight"):
            rows(self.model, **options)

    def test_a_pattern_that_matches_no_weight_suggests_similar_names(self):
        with pytest.raises(SelectionError, match=r"similar names: encoder\.weight, decoder\.weight"):
            rows(self.model, include=("*coder",))

    @pytest.mark.parametrize("patterns", ["a.*", ["a.*"], ("a.*",), Select(include=("a.*",))])
    def test_select_parses_patterns_of_every_type(self, patterns):
        assert Select.parse(patterns).include == ("a.*",)

    def test_invalid_options_of_select_raise(self):
        with pytest.raises(SelectionError, match="merged"):
            Select(lora="both")
        with pytest.raises(SelectionError, match="empty"):
            Select(include=())


def test_every_matrix_is_a_row_or_skipped_never_both():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(9, 8),
            "convolution": nn.Conv1d(8, 8, 3),
            "depthwise": nn.Conv1d(8, 8, 3, groups=8),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(8, 8),
            "norm": nn.LayerNorm(8),
        }
    )
    found, left = find_weights(model)
    accounted = [row.name.partition(":")[0] for row in found] + [name for name, _ in left]
    expected = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    assert set(accounted) == expected
    assert not {row.name for row in found} & {name for name, _ in left}
