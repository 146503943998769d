"""The same layer has the same name in a model and in a wrapped one: live, as a state dict and in the Balancer."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import tempbalance as tb
from adapted_models import llama
from tempbalance.layers import find_units, find_weights, first_and_last, parameter_names, plain_modules, unwrapped
from tempbalance.layers.wrappers import plain_namer


class Net(nn.Module):
    """Two blocks of two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def compiled_blocks(net: Net) -> Net:
    for i, layer in enumerate(net.layers):
        net.layers[i] = torch.compile(layer, backend="eager")
    return net


def checkpointed_blocks(net: Net) -> Net:
    for i, layer in enumerate(net.layers):
        net.layers[i] = checkpoint_wrapper(layer)
    return net


def parallel_blocks(net: Net) -> Net:
    for i, layer in enumerate(net.layers):
        net.layers[i] = nn.DataParallel(layer)
    return net


def fabric(net: Net) -> nn.Module:
    lightning = pytest.importorskip("lightning")
    return lightning.Fabric(accelerator="cpu", devices=1).setup_module(net)


WRAPPERS = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "average of data parallel": lambda net: AveragedModel(nn.DataParallel(net)),
    "compiled data parallel": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
    "compiled blocks": compiled_blocks,
    "checkpointed blocks": checkpointed_blocks,
    "parallel blocks": parallel_blocks,
    "Fabric": fabric,
}


def described(source):
    return [(row.name, row.kind, row.block, row.shape) for row in find_weights(source)[0]]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile uses it
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_has_the_names_of_the_model(wrap):
    net = Net()
    wrapped = wrap(copy.deepcopy(net))
    assert described(wrapped) == described(net)
    assert find_weights(wrapped)[1] == []
    assert described(wrapped.state_dict()) == described(net.state_dict())
    assert list(parameter_names(wrapped)) == list(parameter_names(net))
    for unit in ("layer", "block"):
        units = [find_units(model, find_weights(model)[0], unit=unit) for model in (net, wrapped)]
        assert units[0] == units[1]


@pytest.mark.parametrize(
    "prefix",
    [
        *("_fsdp_wrapped_module.", "_fpw_module.", "module.module.", "_orig_mod.module.", "_module."),
        *("ema.", "ema_model.", "module.ema.", "base_model.model.", "_forward_module.module."),
    ],
)
def test_the_prefix_of_a_whole_state_dict_is_removed(prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in Net().state_dict().items()}
    assert described(state | {"step": torch.tensor(3)}) == described(Net().state_dict())


def test_an_average_next_to_the_model_keeps_its_prefix():
    names = ["model.fc.weight", "ema.fc.weight"]
    plain = plain_namer(names)
    assert [plain(name) for name in names] == names


@pytest.mark.parametrize(
    ("model", "average"),
    [
        ("model.", "model_ema."),
        ("net.", "net_ema."),
        ("net.", "net_ema.module."),
        ("model.", "ema_model."),
        ("net.", "ema_model."),
        ("online_model.", "ema_model."),
        ("", "ema."),
        ("trainer.encoder.", "trainer.encoder_ema."),
    ],
)
@pytest.mark.parametrize("dots", [True, False], ids=["dots", "no dots"])  # without them in checkpoints of LDM
def test_an_average_next_to_the_model_is_skipped(model, average, dots):
    state = Net().state_dict()
    copies = {average + (name if dots else name.replace(".", "")): tensor.clone() for name, tensor in state.items()}
    rows, skipped = find_weights({f"{model}{name}": tensor for name, tensor in state.items()} | copies)
    assert [row.name for row in rows] == [f"{model}{name}" for name in state if name.endswith("weight")]
    assert [s.reason.partition(":")[0] for s in skipped] == [f"a moving average of {row.name}" for row in rows]


def test_an_average_in_a_live_model_is_no_layer():
    net = nn.ModuleDict({"net": Net(), "net_ema": AveragedModel(Net())})
    assert [row.name for row in find_weights(net)[0]] == [f"net.{row.name}" for row in find_weights(Net())[0]]
    assert first_and_last(net) == ("net.layers.0.0.weight", "net.head.weight")


@pytest.mark.parametrize(
    "others",
    [
        {"ema_proj.weight": (8, 8)},  # a layer of Mega
        {"net_ema.fc.weight": (4, 8)},
        {"net_ema.fc.weight": (8, 8), "net_ema.other.weight": (8, 8)},
    ],
)
def test_what_has_other_names_or_shapes_is_no_average(others):
    state = {"net.fc.weight": torch.randn(8, 8), "q_proj.weight": torch.randn(8, 8)}
    rows, skipped = find_weights(state | {name: torch.randn(shape) for name, shape in others.items()})
    assert len(rows) == 2 + len(others)
    assert skipped == []


def test_names_that_would_be_equal_are_kept():
    names = ["a.fc.weight", "a.module.fc.weight", "b.module.fc.weight"]
    plain = plain_namer(names)
    assert [plain(name) for name in names] == ["a.fc.weight", "a.module.fc.weight", "b.fc.weight"]


def test_modules_are_found_inside_their_wrappers():
    net = nn.DataParallel(checkpointed_blocks(Net()))
    modules = plain_modules(net)
    assert type(modules["layers.0"]) is nn.Sequential
    assert modules["layers.0.1"] is net.module.layers[0]._checkpoint_wrapped_module[1]
    assert modules[""] is unwrapped(net) is net.module


def test_a_model_without_wrapper_is_itself():
    net = Net()
    assert unwrapped(net) is net


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of PEFT
@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.LoraConfig(target_modules=["q_proj"]),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_a_model_with_an_adapter_has_the_names_and_blocks_of_its_base_model(config):
    expected = [(row.name, row.block) for row in tb.analyze(llama()).layers]
    model = peft.get_peft_model(llama(), config)
    assert [(row.name, row.block) for row in tb.analyze(model).layers] == expected
    assert type(unwrapped(model)) is type(llama())
    found = [(row.name, row.block) for row in tb.analyze(model.state_dict()).layers]
    assert found == [row for row in expected if config.is_prompt_learning or "q_proj" not in row[0]]
