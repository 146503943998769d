"""The hooks of training methods, and the regularisers and optimizers, each against an oracle."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tempbalance as tb
from tempbalance.errors import ArgumentError, StudyError
from tempbalance.study import Batch, Method, Training, TrainingMethod, describe_methods, outputs_of
from tempbalance.study.methods import TRAINING_METHODS, Muon
from tempbalance.study.methods.hooks import Joined, draw_again
from tempbalance.study.methods.muon import orthogonalize

EPOCHS, BATCHES = 3, 2


def train(names, net, batches, seed=0):
    """Train with the hooks as a task does; returns the model and its losses."""
    joined = Method(names)
    model = joined.prepare(copy.deepcopy(net), Training(seed, EPOCHS, BATCHES))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(seed)
    losses = []
    for batch in batches * EPOCHS:

        def closure(batch=batch):
            outputs = outputs_of(model, batch.inputs)
            loss = joined.loss(model, batch, outputs, cross_entropy(outputs, batch.targets))
            loss.backward()
            return loss

        losses.append(joined.backward(model, closure).item())
        joined.before_step(model)
        optimizer.step()
        optimizer.zero_grad()
        joined.after_step(model, [optimizer])
    return joined.finish(model, batches), losses


@pytest.mark.parametrize(
    "names",
    [
        "snr:strength=0",
        "gradient_noise:variance=0",
        "ps_kd:strength=0",
        "wise_ft:coefficient=1",
        "ensemble_decay:members=1,decay=1",
        "snr:strength=0+ps_kd:strength=0",
        "guidance:strength=0",
        "boosting:members=1",
    ],
)
def test_a_method_of_strength_0_equals_plain_bit_for_bit(net, batches, names):
    plain, losses = train("plain", net, batches)
    other, other_losses = train(names, net, batches)
    assert other_losses == losses
    assert all(map(torch.equal, other.parameters(), plain.parameters()))


@pytest.mark.parametrize(
    "name", ["snr", "gradient_noise", "classifier_alignment", "lora:dropout=0", "ps_kd", "pego", "sara", "guidance"]
)
def test_random_methods_depend_on_the_seed_and_not_on_the_global_generator(net, batches, name):
    weights = []
    for state in (0, 1):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        joined = Method(name)
        model = joined.prepare(copy.deepcopy(net), Training(5, EPOCHS, BATCHES)).eval()
        outputs = outputs_of(model, batches[0].inputs)
        joined.loss(model, batches[0], outputs, cross_entropy(outputs, batches[0].targets)).backward()
        joined.before_step(model)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        weights.append([*gradients, *joined.finish(model, batches).parameters()])
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *weights))


@dataclass
class Recorder(TrainingMethod):
    """A method that records the calls of its hooks."""

    name: str
    calls: list
    members: int = 2
    decay: float = 3.0
    epochs: float = 0.5
    needs = ("labels",)

    def prepare(self, model, training):
        self.calls.append(f"prepare {self.name}")
        return model

    def loss(self, model, batch, outputs, loss):
        return 2 * loss + 1

    def backward(self, model, closure):
        self.calls.append(f"{self.name} begins")
        loss = closure()
        self.calls.append(f"{self.name} ends")
        return loss

    def finish(self, model, batches):
        self.calls.append(f"finish {self.name}")
        return model


def test_the_first_joined_method_prepares_first_surrounds_the_others_and_finishes_last(net, batches):
    calls = []
    joined = Joined("", [Recorder("a", calls), Recorder("b", calls)])
    joined.prepare(net, Training(0, 1, BATCHES))
    assert joined.backward(net, lambda: torch.tensor(7.0)).item() == 7
    joined.finish(net, batches)
    assert calls == ["prepare a", "prepare b", "a begins", "b begins", "b ends", "a ends", "finish b", "finish a"]
    assert joined.loss(net, batches[0], None, torch.tensor(1.0)).item() == 7
    assert (joined.members, joined.decay, joined.epochs) == (4, 9, 0.25)


def test_without_methods_the_hooks_change_nothing(net, batches):
    joined = Method("plain")
    assert joined.choose(net, batches, Training(0, 1, BATCHES)) is None
    assert joined.prepare(net, Training(0, 1, BATCHES)) is joined.finish(net, batches) is net
    assert joined.optimizers(net, 0.1, 0.0) is None
    assert joined.backward(net, lambda: 5.0) == joined.loss(net, batches[0], None, 5.0) == 5
    assert (joined.members, joined.decay, joined.epochs) == (1, 1, 1)


def test_requirements_are_the_hooks_that_a_method_has_and_what_it_names():
    expected = {"members", "decay", "epochs", "prepare", "loss", "backward", "finish", "labels"}
    assert Joined("", [Recorder("a", [])]).requirements() == expected
    assert Method("plain").requirements() == Method("llr").requirements() == set()
    assert Method("wise_ft").requirements() == {"prepare", "finish", "pretrained"}
    assert Method("wise_ft:smoothing=0.1").requirements() == {"prepare", "finish", "pretrained", "loss", "labels"}
    assert Method("ensemble_decay:decay=1+gradient_noise").requirements() == {"members", "prepare", "before_step"}


def test_two_methods_with_optimizers_of_their_own_are_refused():
    with pytest.raises(StudyError, match=r"muon\+spd: only one of the joined methods may have the hook optimizers"):
        Method("muon+spd")


def test_the_hooks_that_were_called_are_recorded(net, batches):
    joined = Method("plain")
    assert joined.called_hooks == set()
    joined.before_step(net)
    _ = joined.members
    joined.start(net, batches)
    assert joined.called_hooks == {"before_step", "members", "start"}


def test_every_training_method_has_a_source_and_a_line():
    described = {name: (line, source) for name, line, source in describe_methods()}
    for name, method in TRAINING_METHODS.items():
        line, source = described[name]
        assert line.endswith(".") and source == method.source != ""
    assert described["llr"][1].startswith("LLR (He et al.")
    assert [name for name, (_, source) in described.items() if not source] == ["plain", "by_role", "fixed"]


def test_outputs_are_the_logits_of_tensors_and_of_hugging_face_models():
    class Named(nn.Module):
        def forward(self, *, x):
            return type("Found", (), {"logits": x + 1})

    x = torch.ones(2)
    assert torch.equal(outputs_of(nn.Identity(), x), x)
    assert torch.equal(outputs_of(Named(), {"x": x}), x + 1)


# Spectral norm regularisation


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (4, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_snr_adds_the_gradient_of_the_penalty(shape, dtype):
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(shape, dtype=dtype), torch.randn(3, dtype=dtype)])
    with torch.no_grad():  # a gap, so that the power iteration of a single step finds the largest singular value
        u, s, vh = torch.linalg.svd(model[0].flatten(1), full_matrices=False)
        s[0] *= 3
        model[0].copy_(((u * s) @ vh).view(shape))
    penalty = 0.02 / 2 * torch.linalg.matrix_norm(model[0].flatten(1), 2) ** 2
    (expected,) = torch.autograd.grad(penalty, model[0])
    for parameter in model:
        parameter.grad = torch.ones_like(parameter)
    snr = TRAINING_METHODS["snr"](strength=0.02)
    snr.prepare(model, Training(0, 1, 1))
    snr.before_step(model)
    torch.testing.assert_close(model[0].grad, 1 + expected)
    assert torch.equal(model[1].grad, torch.ones_like(model[1]))  # no matrix


def test_snr_follows_a_weight_with_one_iteration_a_step():
    model = nn.Linear(12, 8, dtype=torch.float64)
    snr = TRAINING_METHODS["snr"](strength=1.0)
    snr.prepare(model, Training(0, 1, 1))
    for _ in range(60):
        model.weight.grad = torch.zeros_like(model.weight)
        snr.before_step(model)
    u, s, vh = torch.linalg.svd(model.weight.detach())
    torch.testing.assert_close(model.weight.grad, s[0] * torch.outer(u[:, 0], vh[0]), atol=1e-3, rtol=0)


# Noise on gradients


@pytest.mark.parametrize("step", [0, 9])
def test_the_variance_of_the_gradient_noise_decays_as_published(step):
    model = nn.Linear(400, 300, bias=False)
    noise = TRAINING_METHODS["gradient_noise"](variance=0.3)
    noise.prepare(model, Training(0, 1, 1))
    for _ in range(step + 1):
        model.weight.grad = torch.zeros_like(model.weight)
        noise.before_step(model)
    count = model.weight.numel()
    expected = 0.3 / (1 + step) ** 0.55
    assert model.weight.grad.square().mean().item() == pytest.approx(expected, rel=5 * (2 / count) ** 0.5)
    assert abs(model.weight.grad.mean().item()) < 5 * (expected / count) ** 0.5


# Self-distillation


def test_self_distillation_mixes_labels_with_predictions_of_the_last_epoch(net, batches):
    kd = TRAINING_METHODS["ps_kd"](strength=0.6)
    kd.prepare(net, Training(0, EPOCHS, BATCHES))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for epoch in range(EPOCHS):
        teacher = copy.deepcopy(net).eval()
        for batch in batches:
            outputs = net(batch.inputs)
            hard = cross_entropy(outputs, batch.targets)
            found = kd.loss(net, batch, outputs, hard)
            share = 0.6 * (epoch + 1) / EPOCHS if epoch else 0
            labels = nn.functional.one_hot(batch.targets, 3)
            targets = (1 - share) * labels + share * teacher(batch.inputs).softmax(1).detach()
            torch.testing.assert_close(found, cross_entropy(outputs, targets))
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
            kd.after_step(net, [optimizer])


def test_self_distillation_resets_for_a_second_model(net, batches):
    kd = TRAINING_METHODS["ps_kd"](strength=1.0)
    for _ in range(2):
        kd.prepare(net, Training(0, 2, 1))
        outputs = net(batches[0].inputs)
        assert kd.loss(net, batches[0], outputs, torch.tensor(7.0)).item() == 7
        kd.after_step(net, [])
        assert kd.loss(net, batches[0], outputs, torch.tensor(7.0)).item() < 7


# Alignment of the classifier


def test_classifier_alignment_corrects_a_shifted_head():
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(60)
    inputs = 3 * nn.functional.one_hot(labels, 8) + torch.randn(180, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
        model[2].weight.copy_(torch.eye(3, 8))
        model[2].bias.copy_(torch.tensor([0.0, 6.0, 0.0]))  # all are taken for class 1
    body = copy.deepcopy(model[0].state_dict())
    alignment = TRAINING_METHODS["classifier_alignment"]()
    alignment.prepare(model, Training(0, 1, 1))
    model = alignment.finish(model, [Batch(inputs[i::2], labels[i::2]) for i in range(2)])
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.9
    assert all(torch.equal(value, body[name]) for name, value in model[0].state_dict().items())


def test_classifier_alignment_works_with_one_example_of_a_class_and_none_of_another(net, batches):
    alignment = TRAINING_METHODS["classifier_alignment"]()
    alignment.prepare(net, Training(0, 1, 1))
    few = Batch(batches[0].inputs[:3], torch.tensor([0, 0, 2]))
    model = alignment.finish(net, [few])
    assert model(few.inputs).argmax(1).tolist() == [0, 0, 2]


# Muon


def matrix_steps(model, optimizers, inputs, steps=2):
    """Take steps on a sum of squares."""
    for _ in range(steps):
        model(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_muon_has_the_hidden_matrices_and_adamw_all_others():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(4, 9))
    frozen = net[3].requires_grad_(False)
    muon, adamw = Joined("", [Muon()]).optimizers(net, 0.01, 0.1, (0.8, 0.9))
    assert [view.shape for view in muon.param_groups[0]["params"]] == [(6, 4)]
    matrices, vectors = adamw.param_groups
    assert [*map(id, matrices["params"])] == [id(net[0].weight), id(net[4].weight)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0)
    assert len(vectors["params"]) == 4 and not any(p is frozen.bias for p in vectors["params"])
    assert matrices["betas"] == (0.8, 0.9) and {matrices["lr"], muon.param_groups[0]["lr"]} == {0.01}


def test_muon_trains_no_weight_that_is_an_embedding_as_well():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(9, 2))
    net[2].weight = net[0].weight
    muon, _ = Muon().optimizers(net, 0.01, 0.1)
    assert [view.data_ptr() for view in muon.param_groups[0]["params"]] == [net[1].weight.data_ptr()]


@pytest.fixture
def float32_muon(monkeypatch):
    """Muon of torch with our iterations, which are in float32."""
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", orthogonalize)


def test_muon_steps_as_torch_does(float32_muon):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    other = copy.deepcopy(net)
    inputs = torch.randn(5, 6)
    options = {"lr": 0.02, "weight_decay": 0.1}
    expected = torch.optim.Muon([other[0].weight], momentum=0.9, adjust_lr_fn="match_rms_adamw", **options)
    matrix_steps(net, Muon(momentum=0.9).optimizers(net, **options), inputs)
    matrix_steps(other, [expected, torch.optim.AdamW([other[1].weight], **options)], inputs)
    torch.testing.assert_close(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_muon_orthogonalizes_by_the_polynomial_of_the_singular_values(shape):
    a, b, c = coefficients = (3.4445, -4.775, 2.0315)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(grad.double() / grad.double().norm(), full_matrices=False)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalize(grad, coefficients, 5, 1e-7).double(), u * values @ v, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_a_convolution_as_a_matrix_in_any_layout(float32_muon, layout):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    inputs = torch.randn(2, 3, 6, 6)
    matrix = nn.Parameter(net[1].weight.detach().flatten(1).clone())
    first, before = net[0].weight.detach().clone(), net[1].weight.detach().clone()
    net = net.to(memory_format=layout)
    net(inputs).square().sum().backward()
    matrix.grad = net[1].weight.grad.clone(memory_format=torch.contiguous_format).flatten(1)
    torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    for optimizer in Muon().optimizers(net, 0.02, 0.1):
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(net[1].weight, matrix.view_as(before))
    assert 0 < (net[0].weight - first).abs().max() < 0.021  # AdamW
    assert all(p.grad is None for p in net.parameters())


def test_muon_needs_a_hidden_matrix():
    with pytest.raises(ValueError, match="Muon needs a trained linear layer or convolution that is neither"):
        Muon().optimizers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), 0.01, 0.1)


# The frozen probe, and a constant


def started(name, net, batches):
    """The model at the start of training, given the data."""
    joined = Method(name)
    model = joined.prepare(copy.deepcopy(net), Training(0, 1, BATCHES))
    joined.start(model, batches)
    return joined, model


@pytest.mark.parametrize("c", [0.1, 10])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(net, batches, c):
    linear_model = pytest.importorskip("sklearn.linear_model")
    joined, model = started(f"probe:c={c}", net, batches)
    features = torch.cat([net[:2](batch.inputs) for batch in batches]).detach().double()
    labels = torch.cat([batch.targets for batch in batches])
    assert len(labels.unique()) == 3
    ones = torch.ones(len(features), 1)  # a feature in place of the intercept, which scikit-learn does not penalise
    regression = linear_model.LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = torch.from_numpy(regression.fit(torch.cat([features, ones], dim=1), labels).coef_).float()
    torch.testing.assert_close(model[3].weight, expected[:, :-1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model[3].bias, expected[:, -1], atol=1e-4, rtol=1e-3)
    assert torch.equal(model[0].weight, net[0].weight)
    assert joined.epochs == 0


def test_lp_ft_starts_from_the_probe_and_trains(net, batches):
    joined, model = started("lp_ft:c=2", net, batches)
    _, probe = started("probe:c=2", net, batches)
    assert all(map(torch.equal, model.parameters(), probe.parameters()))
    assert joined.epochs == 1


def test_the_constant_needs_a_head_with_a_bias(batches):
    with pytest.raises(ArgumentError, match="constant needs a model whose head has a bias"):
        started("constant", nn.Sequential(nn.Linear(8, 3, bias=False)), batches)


def test_the_constant_is_the_most_frequent_class(net, batches):
    _, model = started("constant", net, [Batch(batches[0].inputs[:5], torch.tensor([2, 0, 2, 1, 2]))])
    outputs = model(batches[1].inputs)
    assert outputs.argmax(1).unique().tolist() == [2]
    torch.testing.assert_close(outputs.softmax(1)[0], torch.tensor([2.0, 2.0, 4.0]) / 8)


# The recipe for few samples


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(50, 50), nn.LayerNorm(50)) for _ in range(3))
        self.head = nn.Linear(50, 2)


def test_the_few_sample_recipe_initialises_the_last_blocks_anew_and_trains_longer():
    net = Blocks()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    few_sample = TRAINING_METHODS["few_sample"](blocks=2, longer=3)
    net = few_sample.prepare(net, Training(0, 1, 1))
    assert few_sample.epochs == 3
    changed = [name for name, parameter in net.named_parameters() if not torch.all(parameter == 7)]
    assert {name.rpartition(".")[0] for name in changed} == {"blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1"}
    linear, norm = net.blocks[2]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any() and torch.all(norm.weight == 1) and not norm.bias.any()


def test_blocks_of_two_types_and_in_a_sequential_are_found_and_the_head_is_left():
    net = Blocks()
    net.blocks = nn.Sequential(net.blocks[0], nn.Sequential(nn.Linear(50, 50)), net.blocks[2])
    net.head = nn.Sequential(nn.Linear(50, 2))
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    net = TRAINING_METHODS["few_sample"](blocks=2).prepare(net, Training(0, 1, 1))
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name.rpartition(".")[0] for name in changed} == {"blocks.1.0", "blocks.2.0"}  # a new norm is as it was


def test_more_blocks_than_a_model_has_are_refused():
    with pytest.raises(ValueError, match="this model has 3 blocks, fewer than 4"):
        TRAINING_METHODS["few_sample"](blocks=4).prepare(Blocks(), Training(0, 1, 1))


# Selective projection decay


@pytest.mark.parametrize("strength", [0, 1])
def test_spd_is_adamw_with_a_pull_back_and_without_decay(net, batches, strength):
    nets = [copy.deepcopy(net).eval() for _ in range(2)]
    spd = Joined("", [TRAINING_METHODS["spd"](strength=strength)])
    (found,) = spd.optimizers(nets[0], 0.05, spd.decay * 0.1)
    expected = torch.optim.AdamW(nets[1].parameters(), lr=0.05, weight_decay=0)
    tb.balance.PullBack(expected, strength=strength)
    for batch in batches * EPOCHS:
        for model, optimizer in zip(nets, (found, expected), strict=True):
            cross_entropy(model(batch.inputs), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


# Bad input


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snr:strength=-1", "strength must be 0 or more, got -1"),
        ("gradient_noise:variance=-1", "variance must be 0 or more"),
        ("ps_kd:strength=1.5", r"strength must be in \[0, 1\], got 1.5"),
        ("wise_ft:coefficient=2", r"coefficient must be in \[0, 1\]"),
        ("wise_ft:smoothing=-0.1", r"smoothing must be in \[0, 1\]"),
        ("wise_ft:strength=-1", "strength must be 0 or more"),
        ("ensemble_decay:members=0", "members must be at least 1"),
        ("ensemble_decay:members=1.5", "members must be an integer"),
        ("ensemble_decay:decay=-1", "decay must be 0 or more"),
        ("classifier_alignment:draws=0", "draws must be at least 1"),
        ("classifier_alignment:temperature=0", "temperature must be positive"),
        ("lora:rank=0", "rank must be at least 1"),
        ("muon:momentum=1", r"momentum must be in \[0, 1\), got 1"),
        ("probe:c=0", "c must be positive and finite, got 0"),
        ("few_sample:blocks=-1", "blocks must be at least 0"),
        ("few_sample:blocks=1e999", "blocks must be an integer, got inf"),
        ("pego:rank=4.0", "rank must be an integer, got 4.0"),
        ("classifier_alignment:draws=2.5", "draws must be an integer"),
        ("few_sample:longer=0", "longer must be positive"),
        ("few_sample:longer=1e999", "longer must be positive and finite, got inf"),
        ("spd:strength=-1", "strength must be 0 or more"),
        ("pego:count=0", "count must be at least 1"),
        ("sara:share=1.5", r"share must be in \[0, 1\]"),
        ("progressive_freezing:first=-1", r"first must be in \[0, 1\]"),
        ("progressive_freezing:c=0", "c must be positive"),
        ("projection_head:c=0", "c must be positive"),
        ("data_diet:keep=2", "keep must be at most 1"),
        ("data_diet:score=loss", "score must be el2n or grand, got loss"),
        ("data_diet:runs=0", "runs must be at least 1"),
        ("sam:rho=0", "rho must be positive"),
        ("guidance:guide=none", "guide must be start or random, got None"),
        ("levi:depths=0", "depths must be at least 1"),
        ("boosting:members=0", "members must be at least 1"),
        ("boosting:shrinkage=x", "shrinkage must be a number, got 'x'"),
        ("svfit:rank=0", "rank must be at least 1"),
    ],
)
def test_wrong_parameters_are_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        Method(name)


@pytest.mark.parametrize("name", ["lora", "svfit", "wise_ft", "classifier_alignment"])
def test_a_model_without_a_head_is_refused(name):
    own = TRAINING_METHODS[name]()
    model = nn.Sequential(nn.Conv1d(2, 2, 1))
    with pytest.raises(ValueError, match="needs a model with a linear layer as its head"):
        own.finish(own.prepare(model, Training(0, 1, 1)), [])


@pytest.mark.parametrize("name", ["ps_kd+boosting", "wise_ft+levi", "boosting+levi"])
def test_a_method_that_replaces_the_loss_is_named_first(name):
    with pytest.raises(StudyError, match="boosting and levi replace the loss"):
        Method(name)
    assert len(Method("boosting+ps_kd").custom) == 2


def test_a_recipe_is_not_joined_with_optimizers_that_it_cannot_balance():
    with pytest.raises(StudyError, match="cannot balance the optimizers of another method"):
        Method("muon+tempbalance")


def test_muon_refuses_parametrised_weights():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    method = Method("svfit+muon")
    model = method.prepare(model, Training(0, 1, 1))
    with pytest.raises(ArgumentError, match="no parametrised weights, such as those of pego"):
        method.optimizers(model, 0.1, 0.0)


@pytest.mark.parametrize("deviation", [None, 0.02])
def test_every_matrix_of_a_block_is_drawn_again(deviation):
    class Conv1D(nn.Module):
        """As that of Transformers, without reset_parameters."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 24))

    torch.manual_seed(0)
    block = nn.Sequential(Conv1D(), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.LayerNorm(8))
    before = {name: tensor.clone() for name, tensor in block.named_parameters() if tensor.ndim > 1}
    draw_again(block, deviation)
    after = dict(block.named_parameters())
    assert len(before) == 4
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after["0.weight"].std().item() == pytest.approx(deviation or before["0.weight"].std().item(), rel=0.3)
