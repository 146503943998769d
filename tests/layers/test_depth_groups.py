"""Depth groups: depth is counted in blocks, within each tower; every parameter has one depth."""

import pytest
import torch
import transformers
from torch import nn

from tempbalance.layers import find_depth_groups, find_weights


def depths(model: nn.Module) -> dict[str, int]:
    groups = find_depth_groups(model, find_weights(model)[0])
    found = {name: depth for depth, group in enumerate(groups) for name in group.parameters}
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert sum(len(group.parameters) for group in groups) == len(found)
    return found


def stack(number: int) -> nn.ModuleDict:
    layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 2)}) for _ in range(number))
    return nn.ModuleDict({"embed": nn.Linear(2, 2), "layers": layers, "norm": nn.LayerNorm(2)})


def test_towers_have_depths_of_their_own():
    found = depths(nn.ModuleDict({"text": stack(2), "vision": stack(4), "head": nn.Linear(2, 2)}))
    for tower, number in (("text", 2), ("vision", 4)):
        assert found[f"{tower}.norm.weight"] == 0
        assert [found[f"{tower}.layers.{i}.up.weight"] for i in range(number)] == list(range(number, 0, -1))
        assert found[f"{tower}.embed.weight"] == number + 1
    assert found["head.weight"] == 0


def test_parameters_of_one_depth_are_one_group():
    model = nn.ModuleDict({"text": stack(1), "vision": stack(2)})
    groups = find_depth_groups(model, [])
    assert [group.name for group in groups] == [
        "above the blocks",
        "text.layers.0 and vision.layers.1",
        "vision.layers.0 and below the blocks",
        "below the blocks",
    ]
    assert groups[2].parameters[:2] == ("text.embed.weight", "text.embed.bias")


def test_parameters_outside_of_towers_are_below_or_above_all_of_them():
    inner = nn.ModuleDict({"shared": nn.Embedding(3, 2), "encoder": stack(1), "decoder": stack(2)})
    model = nn.ModuleDict(
        {"vision": stack(5), "projector": nn.Linear(2, 2), "language": inner, "head": nn.Linear(2, 2)}
    )
    found = depths(model)
    assert found["projector.weight"] == found["head.weight"] == 0
    assert found["language.shared.weight"] == 3  # of the language model, not of the vision model
    assert found["vision.embed.weight"] == 6


def test_a_tower_may_be_inside_the_module_of_another():
    model = stack(3)
    model["vision"] = stack(1)
    found = depths(model)
    assert found["layers.0.up.weight"] == 3
    assert found["embed.weight"] == 4
    assert found["vision.layers.0.up.weight"] == 1
    assert found["vision.embed.weight"] == 2


def test_stages_and_lists_of_one_module_are_one_tower():
    net = stack(2)
    net["deeper"] = stack(2)["layers"]
    found = depths(net)
    assert [found[f"{name}.{i}.up.weight"] for name in ("layers", "deeper") for i in (0, 1)] == [4, 3, 2, 1]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_do_not_change_depths(wrap):
    model = nn.ModuleDict({"text": stack(2), "vision": stack(1)})
    assert find_depth_groups(wrap(model), []) == find_depth_groups(model, [])


def test_a_model_with_one_tower_in_a_wrapper_is_one_sequence():
    config = transformers.ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 2], num_stages=2, patch_size=2)
    found = depths(transformers.ConvNextForImageClassification(config))
    assert found["convnext.encoder.stages.1.layers.1.dwconv.weight"] == 1
    assert found["convnext.encoder.stages.0.layers.0.dwconv.weight"] == 3
    assert found["convnext.embeddings.patch_embeddings.weight"] == 4
    assert found["classifier.weight"] == 0
