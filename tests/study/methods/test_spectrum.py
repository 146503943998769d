import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.study import Training
from tempbalance.study.methods import Spectrum

TRAINING = Training(0, 1, 1)


class Net(nn.Module):
    """Four blocks of which each has more signal than the one before, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(4))
        self.head = nn.Linear(64, 2)
        with torch.no_grad():
            for place, block in enumerate(self.blocks):
                block[0].weight[0] += 1.0 * place

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("by", ["snr", "alpha"])
def test_the_layers_that_the_allocation_chooses_and_the_head_are_trained(by):
    model = Net()
    scores = tb.compress.signal_to_noise(model) if by == "snr" else None
    expected = tb.compress.allocate_trainable(tb.analyze(model), 0.5, method=by, scores=scores)
    found = trained(Spectrum(share=0.5, by=by).prepare(model, TRAINING))
    blocks = {name.removesuffix(".weight") for name, value in expected.items() if value and name.startswith("blocks")}
    assert len(blocks) == 2
    assert found == {f"{name}.{part}" for name in (*blocks, "head") for part in ("weight", "bias")}


def test_what_the_task_has_frozen_stays_frozen():
    model = Net()
    model.blocks[3].requires_grad_(False)
    assert not any(name.startswith("blocks.3") for name in trained(Spectrum(share=1.0).prepare(model, TRAINING)))


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    with pytest.raises(ValueError, match=r"spectrum: .* has no blocks"):
        Spectrum().prepare(model, TRAINING)


@pytest.mark.parametrize(("given", "message"), [({"share": 1.5}, "share"), ({"by": "drift"}, "by must be 'snr' or")])
def test_parameters_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(**given)
