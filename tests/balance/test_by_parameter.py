"""Assignments by role, shape and name, and the recipes that use them."""

import dataclasses

import pytest
import torch
from torch import nn

import tempbalance as tb
from tempbalance.balance.assign import ByRole, ByShape, Fixed, LayerwiseDecay, Linear, Times, UnitFacts
from tempbalance.errors import ArgumentError, BalanceError, BalanceWarning

from .conftest import assert_same_bits, make_net, train


class Block(nn.Module):
    def __init__(self, width=16, hidden=32):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up_proj, self.down_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.lm_head = nn.Linear(16, 11, bias=False)


def applied(model, recipe, optimizer=torch.optim.SGD):
    """Return the rate of each parameter inside a step, as a multiple of the base rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    used = optimizer(model.parameters(), lr=1.0)
    balancer = tb.Balancer(used, model, recipe)
    found = {}

    def record(inner, *_):
        for group in inner.param_groups:
            found.update({names[id(parameter)]: group["lr"] for parameter in group["params"]})

    used.register_step_pre_hook(record)  # after the balancer, so that it sees the split groups
    used.step()
    assert len(used.param_groups) == 1
    balancer.remove()
    return found


def recipe_of(assignment, **options):
    return tb.Recipe(name="test", assignment=assignment, **options)


def test_by_role_multiplies_each_parameter_of_the_role():
    rates = applied(Model(), recipe_of(ByRole({"v": 0.25, "norm": 3.0, "embedding": 2.0})))
    for name, rate in rates.items():
        expected = 0.25 if "v_proj" in name else 3.0 if "norm" in name else 2.0 if "embed" in name else 1.0
        assert rate == expected, name


def test_by_role_computes_no_spectrum(monkeypatch):
    monkeypatch.setattr("torch.linalg.eigvalsh", lambda *_, **__: pytest.fail("a spectrum was computed"))
    assert applied(Model(), recipe_of(ByRole({"v": 0.25})))["layers.0.v_proj.bias"] == 0.25


def test_a_fused_parameter_has_the_common_multiplier_of_its_parts():
    layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(2))
    rates = applied(layers, recipe_of(ByRole({"q": 0.5, "k": 0.5, "v": 0.5})))
    assert rates["0.self_attn.in_proj_weight"] == 0.5
    with pytest.raises(BalanceError, match=r"in_proj_weight contains q, k, v, .* give one for 'qkv'"):
        applied(layers, recipe_of(ByRole({"v": 0.25})))
    assert applied(layers, recipe_of(ByRole({"v": 0.25, "qkv": 0.5})))["1.self_attn.in_proj_weight"] == 0.5


def test_a_role_that_the_model_lacks_is_refused_before_anything_is_changed():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(BalanceError, match="no parameter with role 'gate'; its roles are embedding, q, v"):
        tb.Balancer(optimizer, model, recipe_of(ByRole({"gate": 2.0})))
    assert applied(model, recipe_of(ByRole({"gate": 2.0}, strict=False)))["lm_head.weight"] == 1.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ByRole({"attention": 1.0}), "there is no role 'attention'; the roles are embedding"),
        (lambda: ByRole({"v": -1.0}), "the multiplier of v must be finite and not negative"),
        (lambda: ByRole({"v": float("nan")}), "the multiplier of v"),
        (lambda: Fixed({"role:vv": 1.0}), "there is no role 'vv'"),
        (lambda: ByShape("mup", "muon"), "rule mup is for optimizer adam or sgd, got 'muon'"),
        (lambda: ByShape("width"), "rule must be one of mup, spectral"),
        (lambda: ByShape("mup", "adam", width=0), "width must be positive"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


def test_the_first_pattern_that_matches_counts():
    rates = applied(Model(), recipe_of(Fixed({"layers.0.*": 0.5, "*.v_proj.weight": 0.25, "role:up": 2.0})))
    assert rates["layers.0.v_proj.weight"] == 0.5
    assert rates["layers.1.v_proj.weight"] == 0.25
    assert rates["layers.1.v_proj.bias"] == 1.0
    assert rates["layers.2.up_proj.bias"] == 2.0


def test_a_pattern_without_a_parameter_is_refused():
    with pytest.raises(BalanceError, match=r"'\*\.v\.\*' is the first to match no parameter .* with roles"):
        applied(Model(), recipe_of(Fixed({"*.v_proj.*": 0.5, "*.v.*": 0.5})))


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_multipliers_are_saved_and_loaded(tmp_path, suffix):
    pytest.importorskip("yaml")
    fixed = Fixed({"*.v_proj.*": 0.25, "role:norm": 3.0})
    fixed.save(tmp_path / f"found{suffix}")
    assert list(Fixed.load(tmp_path / f"found{suffix}").multipliers.items()) == list(fixed.multipliers.items())
    assert tb.recipes.fixed(tmp_path / f"found{suffix}").assignment == fixed


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.json", "{", "is not a file of multipliers"),
        ("a.json", '{"multipliers": {"a": "b"}}', "multipliers"),
        ("a.json", '{"multipliers": {"a": -1}}', "must be finite and not negative"),
        ("a.json", '{"schema": 9, "multipliers": {}}', "newer tempbalance"),
        ("a.yaml", "a: [", "it is not YAML"),
        ("a.yaml", "a: &a [x]\nmultipliers: *a", "it has aliases"),
        ("missing.yaml", None, "No such file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, text, match):
    pytest.importorskip("yaml")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BalanceError, match=match):
        Fixed.load(tmp_path / name)


SHAPES = {  # role, kind, fan in, fan out
    "up": ("up", "linear", 64, 256),
    "down": ("down", "linear", 256, 64),
    "head": ("head", "linear", 64, 1000),
    "embedding": ("embedding", "embedding", 1, 64),
    "norm": ("norm", "vector", 0, 64),
}


@pytest.mark.parametrize(
    ("rule", "optimizer", "expected"),
    [
        ("mup", "adam", [1 / 2, 1 / 8, 1 / 2, 1, 1]),
        ("mup", "sgd", [1, 1, 1 / 2, 2, 2]),
        ("spectral", "adam", [1 / 2, 1 / 8, 1 / 2, 1, 1]),
        ("spectral", "sgd", [4, 1 / 4, 1000 / 64, 2, 2]),
        ("spectral", "muon", [2, 1 / 2, (1000 / 64) ** 0.5, 1, 1]),
        ("muon", "muon", [2, 1, (1000 / 64) ** 0.5, 1, 1]),
        ("muon_rms", "muon", [8**0.5, 8**0.5, (1000 / 32) ** 0.5, 1, 1]),
    ],
)
def test_rules_by_shape(rule, optimizer, expected):
    units = [UnitFacts(role=r, kind=k, fan_in=i, fan_out=o) for r, k, i, o in SHAPES.values()]
    assert ByShape(rule, optimizer, width=32).assign(units) == pytest.approx(expected)


def test_with_spectral_multipliers_an_sgd_like_update_has_the_spectral_norm_of_the_condition():
    torch.manual_seed(0)
    for inputs, outputs in ((64, 256), (256, 64)):
        unit = UnitFacts(role="up", kind="linear", fan_in=inputs, fan_out=outputs)
        update = torch.outer(torch.randn(outputs).sign(), torch.randn(inputs).sign()).double()  # entries of size 1
        factor = ByShape("spectral", "adam", width=64).assign([unit])[0]
        norm = factor * torch.linalg.matrix_norm(update, 2)
        assert norm == pytest.approx(64 * (outputs / inputs) ** 0.5)


def test_the_reference_width_is_the_median_of_the_models_layers():
    rates = applied(Model(), tb.recipes.mup(optimizer="sgd", rule="spectral"))
    assert rates["layers.0.up_proj.weight"] == 2.0
    assert rates["layers.0.down_proj.weight"] == 0.5
    assert rates["embed.weight"] == rates["layers.0.norm.weight"] == 1.0


def test_experts_keep_the_base_rate_and_a_warning_says_so():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(3, 16, 32))
            self.down_proj = nn.Parameter(torch.randn(3, 16, 16))

    model = nn.Sequential(nn.Linear(32, 16), Experts())
    with pytest.warns(BalanceWarning, match=r"2 weights keep the base value, .* 1.gate_up_proj"):
        rates = applied(model, tb.recipes.mup(optimizer="sgd", rule="spectral", width=8))
    assert rates["1.down_proj"] == 1.0 != rates["0.weight"]


def test_a_recipe_for_another_family_of_optimizers_is_refused():
    model = Model()
    with pytest.raises(BalanceError, match=r"for optimizers like adam, but SGD is like sgd: give optimizer='sgd'"):
        tb.Balancer(torch.optim.SGD(model.parameters(), lr=0.1), model, tb.recipes.mup())
    tb.Balancer(torch.optim.AdamW(model.parameters()), model, tb.recipes.mup())


class OwnMuon(torch.optim.SGD):
    """An optimizer whose name tells its family."""


def test_factors_of_muon():
    rates = applied(Model(), tb.recipes.muon_factors(), OwnMuon)
    assert rates["layers.0.up_proj.weight"] == 2**0.5
    assert rates["layers.0.down_proj.weight"] == rates["layers.0.norm.weight"] == 1.0


def test_factors_of_muon_are_refused_for_an_optimizer_that_has_them():
    model = Model()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    with pytest.raises(BalanceError, match=r"Muon has the factors of muon_factors built in"):
        tb.Balancer(torch.optim.Muon(matrices), model, tb.recipes.muon_factors())


@pytest.mark.parametrize("make", [lambda: tb.recipes.by_role({"v": 0.5}), lambda: tb.recipes.fixed({"*.v.*": 0.5})])
def test_recipes_by_hand_are_equal_and_hashable(make):
    assert len({make(), make()}) == 1


def test_blockwise_lr_has_the_published_ratios():
    rates = applied(Model(), tb.recipes.blockwise_lr(base=1.0))
    found = [rates[f"layers.0.{name}.weight"] for name in ("norm", "v_proj", "up_proj", "q_proj")]
    assert [*found, rates["embed.weight"], rates["lm_head.weight"]] == [1.0, 4.0, 6.0, 8.0, 10.0, 1.0]


def test_roles_and_depths_are_multiplied():
    rates = applied(Model(), recipe_of(Times(LayerwiseDecay(0.5), ByRole({"v": 0.25}))))
    assert [rates[f"layers.{i}.v_proj.weight"] for i in range(3)] == [0.03125, 0.0625, 0.125]
    assert rates["layers.2.q_proj.weight"] == 0.5
    assert rates["lm_head.weight"] == 1.0


def test_roles_and_alphas_are_multiplied_and_norms_keep_their_own():
    net = make_net()
    alone = applied(net, recipe_of(Linear(0.5, 1.5)))
    both = applied(net, recipe_of(Times(Linear(0.5, 1.5), ByRole({"up": 2.0, "norm": 3.0}))))
    for name, rate in both.items():
        factor = 3.0 if "norm" in name else 2.0 if "fc1" in name else 1.0
        assert rate == factor * alone[name], name


def test_one_multiplier_per_role_by_the_mean_alpha():
    net = make_net()
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe_of(Linear(0.5, 1.5), unit="role"))
    train(net, balancer.optimizer, steps=1)
    alphas = {row.name: row.alpha for row in tb.analyze(net, progress=False).layers}
    by_name = {unit.name: unit for unit in balancer.units}
    assert by_name["up"].parameters == tuple(f"blocks.{i}.fc1.{kind}" for i in range(3) for kind in ("weight", "bias"))
    assert set(by_name) >= {"up", "down"}
    assert len(alphas) >= len(by_name)


@pytest.mark.parametrize("recipe", ["by_role", "mup"])
def test_a_resumed_run_is_bit_identical(recipe):
    make = {"by_role": lambda: tb.recipes.by_role({"up": 0.3}), "mup": lambda: tb.recipes.mup(optimizer="sgd", width=9)}
    results = []
    for stop in (None, 3):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        tb.Balancer(optimizer, net, make[recipe]())
        for step in range(6):
            if step == stop:
                saved = net.state_dict(), optimizer.state_dict()
                net = make_net(1)
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
                tb.Balancer(optimizer, net, make[recipe]())
                net.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            train(net, optimizer, steps=step + 1, start=step)
        results.append(net.state_dict())
    assert_same_bits(*results)


def test_multipliers_of_one_change_no_bit():
    results = []
    for recipe in (None, tb.recipes.fixed({"*.fc1.*": 1.0, "role:norm": 1.0})):
        net = make_net()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        if recipe is not None:
            tb.Balancer(optimizer, net, recipe)
        train(net, optimizer, steps=4)
        results.append(net.state_dict())
    assert_same_bits(*results)


def test_a_study_knows_the_recipes_and_their_controls():
    net = make_net()
    for name in ("by_role:multipliers={'up':0.3}", "by_role:multipliers={'up':0.3},control=shuffled", "blockwise_lr"):
        optimizer = torch.optim.AdamW(net.parameters())
        balancer = tb.study.Method(name, seed=1).balance(optimizer, net)
        train(net, optimizer, steps=1)
        assert len({unit.multiplier for unit in balancer.units}) > 1
        balancer.remove()


def test_unfrozen_parameters_join_their_role():
    net = make_net()
    frozen = net.blocks[0]["fc1"].weight.requires_grad_(False)
    recipe = dataclasses.replace(tb.recipes.by_role({"up": 0.3}), every=tb.Every(steps=2))
    balancer = tb.Balancer(torch.optim.SGD(net.parameters(), lr=0.1), net, recipe)
    train(net, balancer.optimizer, steps=1)
    assert "blocks.0.fc1.weight" not in {name for unit in balancer.units for name in unit.parameters}
    frozen.requires_grad_()
    train(net, balancer.optimizer, steps=4, start=1)
    up = next(unit for unit in balancer.units if unit.name == "up")
    assert (up.multiplier, "blocks.0.fc1.weight" in up.parameters) == (0.3, True)
