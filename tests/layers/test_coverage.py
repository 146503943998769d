"""The size of a model: its parameters, and its weights that could be analysed."""

import pytest
import torch
from torch import nn

from tempbalance.layers import Select, find_weights_and_size
from tempbalance.types import ModelSize


class Net(nn.Module):
    """An embedding, two blocks with a depthwise convolution and a table, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(8, 8), "conv": nn.Conv1d(8, 8, 3, groups=8), "norm": nn.BatchNorm1d(8)})
            for _ in range(2)
        )
        self.layers[0].register_parameter("rel_pos", nn.Parameter(torch.zeros(5, 8)))
        self.neck = nn.Linear(8, 4)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.wte.weight


IN_BLOCKS = 2 * (8 * 8 + 8 * 3)
SIZE = ModelSize(
    parameters=10 * 8 + 2 * (8 * 8 + 8 + 8 * 3 + 8 + 2 * 8) + 5 * 8 + 8 * 4 + 4,
    weights=IN_BLOCKS + 8 * 4,
    block_weights=IN_BLOCKS,
)


@pytest.mark.parametrize("source", [Net(), Net().state_dict()], ids=["live", "state dict"])
def test_every_parameter_and_every_weight_is_counted_once(source):
    assert find_weights_and_size(source, Select())[2] == SIZE
    assert find_weights_and_size(source, Select(embeddings=True))[2] == SIZE


def test_weights_that_are_not_selected_do_not_count_as_weights():
    size = find_weights_and_size(Net(), Select(include=("*.fc.*",)))[2]
    assert size == SIZE._replace(weights=2 * 64, block_weights=2 * 64)


def test_quantised_weights_count_and_their_scales_do_not():
    state = {
        "layers.0.fc.qweight": torch.zeros(8, 8, dtype=torch.int32),
        "layers.0.fc.qzeros": torch.zeros(2, 8, dtype=torch.int32),
        "layers.0.fc.scales": torch.zeros(2, 8),
        "layers.0.up.qweight": torch.zeros(8, 8, dtype=torch.int32),
        "layers.0.up.scales": torch.zeros(2, 8),
        "head.weight": torch.zeros(8, 8),
        "ids": torch.zeros(3, 4, dtype=torch.long),
    }
    rows, _, size, _ = find_weights_and_size(state, Select())
    assert [row.name for row in rows] == ["head.weight"]
    assert size == ModelSize(parameters=3 * 64, weights=3 * 64, block_weights=2 * 64)


def test_a_model_without_blocks_has_no_block_weights():
    assert find_weights_and_size(nn.Linear(8, 4), Select())[2] == ModelSize(36, 32, 0)


def test_moving_averages_are_no_parameters_of_the_model():
    """Their biases and norms are no weight matrices, and are not counted either."""

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))

    net = nn.ModuleDict({"net": block(), "net_ema": block()})
    for source in (net, net.state_dict(), nn.Sequential(net)):
        assert find_weights_and_size(source, Select())[2] == ModelSize(64 + 3 * 8, weights=64, block_weights=0)
    alone = nn.ModuleDict({"net_ema": block()})  # the only weights there are
    assert find_weights_and_size(alone, Select())[2].parameters == 64 + 3 * 8
    net["net_ema"] = net["net"]
    assert find_weights_and_size(net.state_dict(), Select())[2].parameters == 64 + 3 * 8
