"""Weights that are no matrices although they have a matrix's name, or matrices that are stored as one vector."""

import pytest
import torch
from torch import nn

from tempbalance.layers import Select, find_weights, find_weights_and_size


class Flat(nn.Module):
    """A layer as in e3nn: several matrices in one vector."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))


class Net(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.fc = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.mix = Flat(size)


def both(model):
    return model, model.state_dict()


@pytest.mark.parametrize("source", both(Net(96)), ids=["live", "state dict"])
def test_matrices_in_one_vector_are_skipped_and_count_as_weights(source):
    rows, skipped, size, _ = find_weights_and_size(source, Select())
    assert [row.name for row in rows] == ["fc.weight"]
    assert [(each.name, each.reason.partition(" (")[0]) for each in skipped] == [
        ("mix.weight", "its matrices are stored as one vector")
    ]
    assert size.weights == 8 * 12 + 96


@pytest.mark.parametrize("source", both(Net(12)), ids=["live", "state dict"])
def test_a_vector_that_is_no_longer_than_an_axis_is_the_scale_of_a_norm(source):
    assert find_weights(source)[1] == []


@pytest.mark.parametrize("shape", [(8, 12), (3, 8, 12)])
def test_the_scale_of_a_norm_over_several_axes_is_no_weight_matrix(shape):
    for source in both(nn.Sequential(nn.LayerNorm(shape), nn.Linear(12, 4))):
        rows, skipped, size, _ = find_weights_and_size(source, Select())
        assert [row.name for row in rows] == ["1.weight"]
        assert skipped[0].reason.startswith("a scale of each entry")
        assert size.weights == 12 * 4


@pytest.mark.parametrize(
    "model",
    [
        nn.ModuleDict({"layer": nn.Conv1d(64, 64, 31, groups=64)}),
        nn.ModuleDict({"stft": nn.Conv1d(1, 32, 80, bias=False)}),
        nn.ModuleDict({"layers": nn.Sequential(nn.Conv1d(20, 20, 39))}),
        nn.ModuleDict({"conv1": nn.Conv1d(4, 8, 20, bias=False)}),
    ],
)
def test_long_kernels_of_a_state_dict_are_those_of_the_live_model(model):
    live, stored = map(find_weights, both(model))
    assert [(row.name, row.kind, row.shape) for row in stored[0]] == [(r.name, r.kind, r.shape) for r in live[0]]
    assert stored[1] == live[1]
