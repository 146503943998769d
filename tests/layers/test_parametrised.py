"""Weights in parts: live, as state dict and from a file, against numpy's SVD of the weight that is applied."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import tempbalance as tb

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # the older weight norm


class Doubled(nn.Module):
    """A parametrization whose formula no name tells."""

    def forward(self, weight):
        return 2 * weight


def weight_norm_with(axis):
    return lambda layer: parametrizations.weight_norm(layer, dim=axis)


def masked(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


def random_parts(module):
    """Change the parts as training does: lengths of rows, entries; then the vectors of power iteration."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(torch.linspace(0.2, 3, parameter.numel()).reshape(parameter.shape))
    for _ in range(3):
        module(probe(module))
    module.eval()(probe(module))  # older hooks set the attribute
    return module


LAYERS = {
    "linear": lambda: nn.Linear(24, 24),
    "conv": lambda: nn.Conv1d(12, 12, 5),
    "transposed": lambda: nn.ConvTranspose2d(12, 12, 3),
    "embedding": lambda: nn.Embedding(30, 16),
}
COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of axis 1": weight_norm_with(1),
    "weight_norm of all": weight_norm_with(None),
    "weight_norm, older": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, older": spectral_norm,
    "mask": masked,
}


def build(layer, computed):
    torch.manual_seed(0)
    return nn.ModuleDict({"a": random_parts(COMPUTED[computed](LAYERS[layer]()))})


def probe(layer):
    """An input of a layer."""
    if isinstance(layer, nn.Linear):
        return torch.zeros(1, 24)
    if isinstance(layer, nn.Embedding):
        return torch.zeros(1, dtype=torch.long)
    return torch.zeros(1, 12, *(9,) * (layer.weight.ndim - 2))


def applied(module):
    """The largest eigenvalue of the weight of a layer, by numpy."""
    weight = module.a.weight.detach().double().numpy()
    return np.linalg.svd(np.moveaxis(weight, (0, 1), (-2, -1)), compute_uv=False).max() ** 2


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("layer", LAYERS)
def test_live_state_dict_and_file_have_the_applied_weight(layer, computed, tmp_path):
    module = build(layer, computed)
    expected = applied(module)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    torch.save(module.state_dict(), tmp_path / "model.pt")
    sources = [module, module.state_dict(), tmp_path / "model.safetensors", tmp_path / "model.pt"]
    for source in sources:
        (row,) = tb.analyze(source, select=tb.Select(embeddings=True)).layers
        assert row.name == "a.weight"
        assert row.lambda_max == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("computed", [Doubled, None], ids=["custom", "orthogonal"])
def test_a_parametrization_without_a_known_formula_is_computed_live_and_skipped_in_a_state_dict(computed):
    torch.manual_seed(0)
    layer = nn.Linear(24, 24)
    if computed is None:
        parametrizations.orthogonal(layer)
    else:
        parametrize.register_parametrization(layer, "weight", computed())
    expected = np.linalg.norm(layer.weight.detach().double().numpy(), 2) ** 2
    assert tb.analyze(layer).layers[0].lambda_max == pytest.approx(expected, rel=1e-5)
    analysis = tb.analyze(layer.state_dict())
    assert not analysis.layers
    assert {s.name: "live model" in s.reason for s in analysis.skipped} == {"weight": True}


def test_a_mask_that_is_stored_as_booleans_is_applied():
    layer = masked(nn.Linear(24, 24))
    stored = {**layer.state_dict(), "weight_mask": layer.weight_mask.bool()}
    expected = np.linalg.norm(layer.weight.detach().double().numpy(), 2) ** 2
    assert tb.analyze(stored).layers[0].lambda_max == pytest.approx(expected, rel=1e-5)


def test_a_mask_on_a_factor_of_weight_norm_is_applied():
    layer = weight_norm(nn.Linear(24, 24))
    prune.l1_unstructured(layer, "weight_v", 0.5)
    for _ in range(2):  # the hook of the mask runs after that of weight norm
        layer(torch.zeros(1, 24))
    expected = np.linalg.norm(layer.weight.detach().double().numpy(), 2) ** 2
    for source in (layer, layer.state_dict()):
        (row,) = tb.analyze(source).layers
        assert (row.name, row.lambda_max) == ("weight", pytest.approx(expected, rel=1e-5))


def test_tied_parts_are_one_weight():
    state = build("linear", "weight_norm").state_dict()
    again = {name.replace("a.", "b."): tensor for name, tensor in state.items()}
    analysis = tb.analyze(state | again)
    assert [row.name for row in analysis.layers] == ["a.weight"]
    assert [s.reason for s in analysis.skipped] == ["tied to a.weight"]


@pytest.mark.parametrize(
    "tensors",
    [
        {"a_g": torch.ones(24, 24), "a_v": torch.ones(24, 24)},  # no norms of rows
        {"a_orig": torch.randn(24, 24)},
        {"a_u": torch.randn(24, 12), "a_v": torch.randn(12, 24)},  # low-rank factors
    ],
    ids=" ".join,
)
def test_names_that_only_look_like_parts_stay_as_they_are(tensors):
    analysis = tb.analyze(tensors)
    assert {row.name for row in analysis.layers} == tensors.keys()


def test_a_spectral_norm_without_its_vectors_is_skipped():
    state = build("linear", "spectral_norm, older").state_dict()
    del state["a.weight_v"]
    analysis = tb.analyze(state)
    assert not analysis.layers
    assert [s.name for s in analysis.skipped] == ["a.weight"]


def test_a_spectral_norm_whose_axis_is_unknown_is_skipped():
    torch.manual_seed(0)
    (skipped,) = tb.analyze(spectral_norm(nn.ConvTranspose2d(12, 12, 3)).state_dict()).skipped
    assert (skipped.name, "live model" in skipped.reason) == ("weight", True)


@pytest.mark.parametrize("model", ["encodec", "wav2vec2"])
def test_weight_normed_convolutions_of_a_folder_are_those_of_the_model(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if model == "encodec":
        config = transformers.EncodecConfig(num_filters=8, hidden_size=32, codebook_dim=32)
        built = transformers.EncodecModel(config)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.Wav2Vec2Config(
            **sizes, conv_dim=[32] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2
        )
        built = transformers.Wav2Vec2Model(config)
    built.save_pretrained(tmp_path)
    live, disk = ([(r.name, r.kind, r.lambda_max) for r in tb.analyze(source).layers] for source in (built, tmp_path))
    assert disk == live
    assert any(kind.startswith("conv") and "parametrizations" not in name for name, kind, _ in live)
