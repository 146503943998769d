"""SparseGPT through llm-compressor: exact zeros by name, and no side effects."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.compress import Allocation, LayerAllocation
from tempbalance.errors import AllocationError, MissingExtraError, NonFiniteError, TokensError

transformers = pytest.importorskip("transformers")
needs_llmcompressor = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('llmcompressor')", reason="needs llm-compressor, extra prune"
)
pytestmark = needs_llmcompressor

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def linear_names(model: nn.Module) -> list[str]:
    return [
        f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear and "layers" in name
    ]


def sparsegpt(model: nn.Module, sparsities: dict[str, float], tokens: list[Tensor]) -> None:
    """Prune by SparseGPT to a sparsity for each weight name; the names need not be in the model."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layers = []
    for name, sparsity in sparsities.items():
        shape = shapes.get(name, (1, 1))
        layers.append(LayerAllocation(name=name, unit=name, shape=shape, zeros=round(sparsity * math.prod(shape))))
    allocation = Allocation(source="test", budget=0.5, method="by hand", unit="layer", layers=tuple(layers))
    tb.prune(model, allocation, "sparsegpt", calibration=tokens, progress=False)


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((parameter == 0).sum()) for name, parameter in model.named_parameters()}


def state_of(model: Any) -> Any:
    """Return all state that a run could change, except the weights."""
    modules = {
        name: (
            type(module),
            sorted(vars(module)),
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }
    parameters = {name: (id(p), p.device, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    return modules, parameters, model.config.to_dict(), dict(os.environ)


def test_every_matrix_gets_its_own_number_of_zeros_in_any_order(make_llama: Any, tokens: list[Tensor]):
    model = make_llama()
    names = linear_names(model)
    # 3 zeros are fewer than the rounding of the blocks of columns; 0.00005 of 5120 entries rounds to 0 zeros
    wanted = {name: (i + 1) / (len(names) + 1) for i, name in enumerate(names)} | {
        UP: 1.0,
        names[0]: 3 / 1024,
        names[1]: 5e-5,
    }
    sparsegpt(model, dict(reversed(wanted.items())), tokens)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert {name: zeros(model)[name] for name in names} == {name: round(s * sizes[name]) for name, s in wanted.items()}


def test_sparsegpt_does_not_change_weights_outside_the_allocation(make_llama: Any, tokens: list[Tensor]):
    model, before = make_llama(), make_llama().state_dict()
    sparsegpt(model, {UP: 0.5}, tokens)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == [UP]
    kept = model.get_parameter(UP) != 0
    assert not torch.equal(model.get_parameter(UP)[kept], before[UP][kept])  # remaining weights are updated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparsegpt_changes_no_other_state_and_prints_nothing(
    make_llama: Any, tokens: list[Tensor], dtype: torch.dtype, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = make_llama().to(dtype).train()
    model.model.layers[0].mlp.eval()
    before = state_of(model)
    sparsegpt(model, dict.fromkeys(linear_names(model), 0.5), tokens)
    assert state_of(model) == before
    assert zeros(model)[DOWN] == 2560
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_sparsegpt_leaves_no_hooks(make_llama: Any, tokens: list[Tensor]):
    model = make_llama().train()
    model.model.layers[0].mlp.register_forward_hook(
        lambda mlp, _, found: found * torch.inf if bool((mlp.up_proj.weight == 0).any()) else found
    )
    before = state_of(model)
    with pytest.raises(NonFiniteError, match=r"layers\.1\..* once the blocks before are pruned: load the model again"):
        sparsegpt(model, dict.fromkeys(linear_names(model), 0.5), tokens)
    assert state_of(model) == before


def test_an_expert_that_no_token_reaches_any_more_is_pruned_by_magnitude(make_llama: Any, tokens: list[Tensor]):
    model = make_llama()
    first, second = (block.mlp for block in model.model.layers)
    second.expert = nn.Linear(32, 32)
    second.register_forward_pre_hook(lambda mlp, args: None if (first.up_proj.weight == 0).any() else mlp.expert(*args))
    name = "model.layers.1.mlp.expert.weight"
    dense = second.expert.weight.detach().abs().flatten()
    sparsegpt(model, {UP: 0.5, name: 0.5}, tokens)
    assert torch.equal(second.expert.weight.flatten() == 0, dense <= dense.median())


def test_unused_inputs_do_not_add_zeros(make_llama: Any, tokens: list[Tensor]):
    model = make_llama()
    down = "model.layers.0.mlp.down_proj.weight"
    with torch.no_grad():
        model.get_parameter(UP)[:100] = 0  # 100 of the 160 inputs of down are always 0
    sparsegpt(model, {down: 0.25}, tokens)
    assert zeros(model)[down] == 1280
    assert int((model.get_parameter(down)[:, 100:] == 0).sum()) > 0  # unused inputs do not count against the budget


def test_the_mask_agrees_with_llm_compressor(make_llama: Any, tokens: list[Tensor]):
    from llmcompressor.core import create_session
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.pipelines.basic import run_calibration

    ours, theirs = make_llama(), make_llama()
    first = [name for name in linear_names(ours) if "layers.0" in name]  # later blocks get other inputs there
    sparsegpt(ours, dict.fromkeys(first, 0.6), tokens)
    with create_session() as session:
        session.initialize(model=theirs, recipe=SparseGPTModifier(sparsity=0.6, targets=[name[:-7] for name in first]))
        run_calibration(theirs, [{"input_ids": sequence[None]} for sequence in tokens])
    for name in first:
        a, b = ours.get_parameter(name), theirs.get_parameter(name)
        assert int(((a == 0) != (b == 0)).sum()) <= 0.01 * a.numel(), name


def test_sparsegpt_has_a_lower_perplexity_than_magnitude_on_a_real_model(stories: tuple[Path, list[Tensor]]):
    folder, documents = stories
    values = {}
    for method in ("magnitude", "sparsegpt"):
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
        allocation = tb.allocate_sparsity(tb.analyze(model, progress=False), sparsity=0.5, method="uniform")
        achieved = tb.compress.prune(model, allocation, method, calibration=documents[100:164], progress=False)
        assert achieved == dict(allocation)
        values[method] = float(tb.compress.perplexity(model, documents[500:550], progress=False))
    assert values["sparsegpt"] < 0.6 * values["magnitude"]  # 17 and 38


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",  # outside blocks
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.qkv_proj.weight:q",
        "model.layers.0.mlp.experts.down_proj:3",
        "model.layers.7.mlp.up_proj.weight",
        UP.removesuffix(".weight"),
    ],
)
def test_a_weight_that_is_not_a_whole_linear_layer_is_refused_by_name(name: str, make_llama: Any, tokens: list[Tensor]):
    model, before = make_llama(), make_llama().state_dict()
    with pytest.raises(AllocationError, match=name.replace(".", r"\.")):
        sparsegpt(model, {UP: 0.5, name: 0.5}, tokens)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_conv1d_of_gpt2_is_refused(tokens: list[Tensor]):
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(AllocationError, match=r"transformer\.h\.0\.mlp\.c_fc\.weight"):
        sparsegpt(model, {"transformer.h.0.mlp.c_fc.weight": 0.5}, tokens)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1])
def test_a_sparsity_out_of_range_is_refused(sparsity: float, make_llama: Any, tokens: list[Tensor]):
    with pytest.raises(AllocationError, match="up_proj"):
        sparsegpt(make_llama(), {UP: sparsity}, tokens)


def test_an_empty_calibration_set_is_refused(make_llama: Any):
    with pytest.raises(TokensError, match="there is no token"):
        sparsegpt(make_llama(), {UP: 0.5}, [])


def test_without_llm_compressor_the_extra_is_named(
    make_llama: Any, tokens: list[Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[prune\]"):
        sparsegpt(make_llama(), {UP: 0.5}, tokens)


def test_an_empty_allocation_changes_nothing(make_llama: Any, tokens: list[Tensor]):
    sparsegpt(make_llama(), {}, tokens)
