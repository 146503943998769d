"""The state dict is found among what training scripts save."""

import pytest
import torch

from tempbalance.errors import CheckpointError
from tempbalance.layers.nested import find_state_dict

MODEL = {"0.weight": torch.ones(8, 8), "0.bias": torch.ones(8), "1.weight": torch.ones(8, 8)}
AVERAGE = {name: tensor / 2 for name, tensor in MODEL.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(8, 8)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("saved", "key"),
    [
        (MODEL, ""),
        ({**MODEL, "step": torch.tensor(3), "extra": {"table": torch.ones(4, 4)}}, ""),
        ({"model_state_dict": MODEL, "loss": torch.tensor(0.5)}, "model_state_dict"),
        ({"model": MODEL, "best_val_loss": torch.tensor(0.5), "model_args": {"n_layer": 2}}, "model"),
        ({"model_state_dict": MODEL, "cost_matrix": torch.ones(64, 64)}, "model_state_dict"),
        ({"rng": {"cuda.0": torch.ones(9, 9)}, "net": MODEL}, "net"),
        ({"state_dict": MODEL, "optimizer_states": [OPTIMIZER], "callbacks": {"EMA": AVERAGE}}, "state_dict"),
        ({"optimizer": OPTIMIZER, "checkpoint": {"model": MODEL}}, "checkpoint.model"),
        ({"mine": MODEL, "opt": OPTIMIZER}, "mine"),
        ({"params": {"w1": torch.ones(8, 8)}}, "params"),
    ],
)
def test_the_model_is_found_beside_other_tensors(saved, key):
    found = find_state_dict(saved)
    assert (found.key, found.others) == (key, ())


@pytest.mark.parametrize("saved", [{"ema": AVERAGE, "model": MODEL}, {"model": MODEL, "state_dict_ema": AVERAGE}])
def test_the_trained_model_is_preferred_to_its_average_which_is_named(saved):
    found = find_state_dict(saved)
    assert found.tensors["0.weight"].mean() == 1
    assert "ema" in found.message
    assert "--key" in found.message


def test_an_average_alone_is_read_without_a_message():
    found = find_state_dict({"model_ema": AVERAGE, "optimizer": OPTIMIZER})
    assert (found.key, found.message) == ("model_ema", None)


def test_a_key_chooses():
    saved = {"model": MODEL, "ema": {"state_dict": AVERAGE}, "a.b": {"c": AVERAGE}}
    for key in ("ema", "ema.state_dict", "a.b.c", "a.b"):
        assert next(tensor.mean() for tensor in find_state_dict(saved, key).tensors.values()) == 0.5


@pytest.mark.parametrize("key", ["emma", "model.0", "epoch", "opt"])
def test_a_key_without_tensors_raises_with_the_known_keys(key):
    with pytest.raises(CheckpointError, match=r"no tensors under the key .*; it has ema, model"):
        find_state_dict({"model": MODEL, "ema": AVERAGE, "epoch": 1, "opt": {}}, key)


def test_two_equally_likely_models_raise_with_their_keys():
    with pytest.raises(CheckpointError, match=r"student, teacher.*--key"):
        find_state_dict({"student": MODEL, "teacher": AVERAGE})


def test_the_parts_of_one_model_are_joined():
    saved = {"model": {"encoder": MODEL, "embedding": {"word": {"weight": torch.ones(9, 8)}}}}
    assert list(find_state_dict(saved).tensors) == [
        *("encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "embedding.word.weight"),
    ]


@pytest.mark.parametrize("saved", [{}, {"epoch": 1}, OPTIMIZER, {"optimizer": OPTIMIZER}])
def test_mappings_without_a_model_raise(saved):
    with pytest.raises(CheckpointError, match="no state dict found"):
        find_state_dict(saved)


def test_a_dictionary_of_modules_is_refused_with_advice():
    with pytest.raises(CheckpointError, match="pass the module under 'net'"):
        find_state_dict({"net": torch.nn.Linear(2, 2), "epoch": 1})


def test_mappings_that_contain_themselves_are_searched_once():
    saved: dict[str, object] = {"model": MODEL}
    saved["again"] = {"inner": saved}
    assert find_state_dict(saved).key == "model"
    del saved["model"]
    with pytest.raises(CheckpointError):
        find_state_dict(saved)


def test_keys_that_are_integers_are_names():
    assert list(find_state_dict({0: torch.ones(8, 8)}).tensors) == ["0"]
