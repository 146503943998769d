"""VariedModel: changed weights while it runs, in copies that are kept or made block by block, and dense ones after."""

import pytest
import torch

from tempbalance.compress.search import memory
from tempbalance.compress.search.varied_model import VariedModel
from tempbalance.layers import find_weights

IDS = torch.arange(12).view(2, 6)


@pytest.fixture(params=[None, 1], ids=["kept", "streamed"])
def free(request, monkeypatch):
    """The available memory: unknown, or one byte."""
    monkeypatch.setattr(memory, "available_memory", lambda _: request.param)
    return request.param


def weights_of(model):
    return [weight for weight in find_weights(model)[0] if weight.block is not None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def expected(model, levels):
    """Logits with every weight times one plus its level, written to the parameters."""
    parameters = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for weight, level in zip(weights_of(model), levels, strict=True):
            parameters[weight.name].mul_(1 + level)
        found = logits(model)
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    return found


def test_the_model_runs_with_the_levels_that_were_set_last(llama, free):
    weights, dense = weights_of(llama), logits(llama)
    pointers = {name: parameter.data_ptr() for name, parameter in llama.named_parameters()}
    patterns = [[place % 3 for place in range(len(weights))], [0] * len(weights), [1] + [0] * (len(weights) - 1)]
    answers = [expected(llama, levels) for levels in patterns]
    varied = VariedModel(llama, weights, lambda _, values, level: values * (1 + level))
    assert varied.streamed == (free is not None)
    for levels, answer in zip(patterns, answers, strict=True):
        varied.set_levels(levels)
        assert torch.equal(logits(llama), answer)
    varied.close()
    assert torch.equal(logits(llama), dense)
    assert {name: parameter.data_ptr() for name, parameter in llama.named_parameters()} == pointers


@pytest.mark.parametrize("free", [1], indirect=True)
def test_only_the_block_that_runs_has_copies(llama, free):
    weights = weights_of(llama)
    pointers = {name: parameter.data_ptr() for name, parameter in llama.named_parameters()}

    def changed():
        """The blocks whose parameters are copies."""
        return {name.split(".")[2] for name, each in llama.named_parameters() if each.data_ptr() != pointers[name]}

    varied, seen = VariedModel(llama, weights, lambda _, values, level: values * (1 + level)), []
    varied.set_levels([1] * len(weights))
    assert changed() == set()
    for block in llama.model.layers:
        block.mlp.register_forward_pre_hook(lambda *_: seen.append(changed()))
    logits(llama)
    assert seen == [{"0"}, {"1"}, {"2"}]
    assert changed() == set()


def test_a_block_that_raises_has_its_dense_weights_again(llama, free):
    weights, dense = weights_of(llama), logits(llama)
    varied = VariedModel(llama, weights, lambda _, values, level: values * (1 + level))
    varied.set_levels([1] * len(weights))

    def fail(*_):
        """Stop inside a block."""
        raise RuntimeError("stopped")

    handle = llama.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        logits(llama)
    handle.remove()
    varied.close()
    assert torch.equal(logits(llama), dense)


def test_a_weight_that_two_blocks_share_is_changed_in_both(llama, free):
    llama.model.layers[2].mlp.up_proj.weight = llama.model.layers[0].mlp.up_proj.weight
    weights = weights_of(llama)
    levels = [int("mlp" in weight.name) for weight in weights]
    answer = expected(llama, levels)
    varied = VariedModel(llama, weights, lambda _, values, level: values * (1 + level))
    varied.set_levels(levels)
    assert torch.equal(logits(llama), answer)
    varied.close()


def test_the_digest_is_that_of_the_dense_weights(llama, free):
    weights = weights_of(llama)
    varied = VariedModel(llama, weights, lambda _, values, level: values * (1 + level))
    before = varied.digest
    varied.set_levels([1] * len(weights))
    assert varied.digest == before
    varied.close()
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert VariedModel(llama, weights, lambda _, values, level: values * (1 + level)).digest != before


def test_copies_fit_in_half_of_the_available_memory(monkeypatch):
    device = torch.device("cpu")
    assert memory.copies_fit(1, device)
    for free, fits in ((100, True), (99, False), (None, True)):
        monkeypatch.setattr(memory, "available_memory", lambda _, free=free: free)
        assert memory.copies_fit(50, device) is fits
