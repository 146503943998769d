"""The files that a search writes: for tempbalance, axolotl and plain PyTorch."""

import runpy

import pytest
import torch
import yaml
from torch import nn

import search_task
import tempbalance as tb
from tempbalance.study.search_exports import write_exports
from tempbalance.study.search_result import SearchTrial
from tempbalance.study.search_space import find_space
from tempbalance.study.task import load_task

LR = 0.01
MULTIPLIERS = {"role:v": 0.25, "role:down": 2.0, "role:norm": 3.0, "role:embedding": 0.5}


def net():
    torch.manual_seed(0)
    namespace = {"__name__": "task"}
    exec(search_task.TASK, namespace)
    return namespace["Net"]()


def files(folder, multipliers, build=net):
    def train(seed, method, lr):
        model = build()
        method.balance(torch.optim.AdamW(model.parameters(), lr=lr), model)

    space = find_space(load_task(train), [*multipliers], LR, 0)
    trial = SearchTrial(origin="sampled", lr=LR, multipliers=multipliers, values=(1.0,), status="complete")
    return {path.name: path for path in write_exports(folder, trial, space)}


def steps(optimizer, model):
    """Two steps with gradients that differ from parameter to parameter."""
    for count in range(2):
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, float(place + 1) * (-1) ** count)
        optimizer.step()
    return model.state_dict()


def test_the_multipliers_file_is_for_the_recipe_fixed(tmp_path):
    path = files(tmp_path, MULTIPLIERS)["multipliers.yaml"]
    assert tb.recipes.fixed(path) == tb.recipes.fixed(MULTIPLIERS)
    assert yaml.safe_load(path.read_text())["learning_rate"] == LR


@pytest.mark.parametrize("multipliers", [MULTIPLIERS, {"layers.0.*": 0.5, "*.up_proj.*": 2.0, "lm_head.bias": 4.0}])
def test_the_parameter_groups_train_as_the_balancer_does(tmp_path, multipliers):
    code = runpy.run_path(str(files(tmp_path, multipliers)["param_groups.py"]))
    balanced, grouped = net(), net()
    optimizer = torch.optim.AdamW(balanced.parameters(), lr=LR)
    tb.Balancer(optimizer, balanced, tb.recipes.fixed(multipliers))
    expected = steps(optimizer, balanced)
    found = steps(torch.optim.AdamW(code["param_groups"](grouped), lr=code["LR"]), grouped)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_parameter_groups_keep_the_options_of_yours(tmp_path):
    code = runpy.run_path(str(files(tmp_path, MULTIPLIERS)["param_groups.py"]))
    model = net()
    own = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0, "lr": 1.0},
    ]
    groups = code["param_groups"](model, own)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups if group["weight_decay"] == 0.0} == {1.0, 2.0, 3.0}
    assert {group["lr"] for group in groups if group["weight_decay"] == 0.1} == {LR, LR / 4, 2 * LR, LR / 2}


def test_the_parameter_groups_refuse_another_model(tmp_path):
    code = runpy.run_path(str(files(tmp_path, MULTIPLIERS)["param_groups.py"]))
    with pytest.raises(ValueError, match="no parameter of the model matches"):
        code["param_groups"](nn.Linear(2, 2))


def axolotl_rates(settings, model):
    """The learning rate of each weight, as axolotl 0.12 gives it (core/trainers/mixins/optimizer.py)."""
    lookup = {module: group["lr"] for group in settings["lr_groups"] for module in group["modules"]}
    rates = {}
    for name, _ in model.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            rates[name] = settings.get("embedding_lr", settings["learning_rate"])
        elif name.endswith("bias") or "norm" in name:
            rates[name] = settings["learning_rate"]
        else:
            rates[name] = next((lr for part, lr in lookup.items() if part in name), settings["learning_rate"])
    return rates


def test_axolotl_gives_each_weight_its_rate(tmp_path):
    path = files(tmp_path, MULTIPLIERS)["axolotl.yaml"]
    rates = axolotl_rates(yaml.safe_load(path.read_text()), net())
    assert {name: rate for name, rate in rates.items() if rate != LR} == {
        **{f"layers.{block}.v_proj.weight": 0.25 * LR for block in (0, 1)},
        **{f"layers.{block}.down_proj.weight": 2 * LR for block in (0, 1)},
    }
    note = next(line for line in path.read_text().splitlines() if "Not applied" in line)
    assert {*note.partition(": ")[2].split(", ")} == {
        "embed_tokens.weight",
        "layers.*.down_proj.bias",
        "layers.*.norm.weight",
        "layers.*.norm.bias",
    }


def test_axolotl_has_one_rate_for_embeddings_and_head(tmp_path):
    path = files(tmp_path, {"*embed_tokens*": 0.5, "lm_head.weight": 0.5, "lm_head.bias": 0.5})["axolotl.yaml"]
    settings = yaml.safe_load(path.read_text())
    assert settings == {"learning_rate": LR, "embedding_lr": LR / 2, "lr_groups": []}
    assert "Not applied" not in path.read_text()


def test_axolotl_has_full_names_where_parts_of_names_are_ambiguous(tmp_path):
    multipliers = {"layers.0.*": 0.5, "*.q_proj.*": 2.0}
    settings = yaml.safe_load(files(tmp_path, multipliers)["axolotl.yaml"].read_text())
    rates = axolotl_rates(settings, net())
    assert rates["layers.0.q_proj.weight"] == rates["layers.0.up_proj.weight"] == LR / 2
    assert (rates["layers.1.q_proj.weight"], rates["layers.1.up_proj.weight"]) == (2 * LR, LR)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3, 4))
        self.layer = nn.Linear(4, 4)
        self.layer2 = nn.Linear(4, 4)


@pytest.mark.parametrize("multipliers", [{"token": 0.5}, {"layer.*": 2.0}, {"layer2.weight": 2.0, "token": 4.0}])
def test_axolotl_gives_no_weight_the_rate_of_another(tmp_path, multipliers):
    rates = axolotl_rates(yaml.safe_load(files(tmp_path, multipliers, Around)["axolotl.yaml"].read_text()), Around())
    expected = {name: LR * tb.assign.Fixed(multipliers).multiplier_of(facts(name)) for name in rates}
    assert rates == {name: LR if name.endswith("bias") else rate for name, rate in expected.items()}


def facts(name):
    return tb.assign.UnitFacts(parameter=name)


def test_the_parameter_groups_contain_frozen_parameters_only_if_yours_do(tmp_path):
    code = runpy.run_path(str(files(tmp_path, MULTIPLIERS)["param_groups.py"]))
    model = net()
    model.lm_head.requires_grad_(False)
    count = len(list(model.parameters()))
    assert sum(len(group["params"]) for group in code["param_groups"](model)) == count - 2
    own = [{"params": list(model.parameters())}]
    assert sum(len(group["params"]) for group in code["param_groups"](model, own)) == count
