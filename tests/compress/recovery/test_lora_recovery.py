"""Recovery by LoRA: zeros stay zero, merging is exact, and a failed run does not change the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tempbalance as tb
from tempbalance.compress import RecoverySettings, load_causal_lm, recover, save_recovered
from tempbalance.compress.recovery.sparse_lora import sparse_lora
from tempbalance.errors import AllocationError, CheckpointError, MissingExtraError, NonFiniteError, TokensError

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

FAST = RecoverySettings(lr=1e-2, length=16, batch=4, epochs=2)
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def pruned(make_llama: Any) -> Any:
    """A pruned LLaMA."""
    return prune_blocks(make_llama().eval())


def prune_blocks(model: Any) -> Any:
    """Every second linear layer of the blocks at 50 %, the others at 70 %."""
    weights = [p for name, p in model.named_parameters() if p.ndim > 1 and (".layers." in name or ".h." in name)]
    with torch.no_grad():
        for i, weight in enumerate(weights):
            weight[weight.abs() < weight.abs().flatten().quantile(0.7 if i % 2 else 0.5)] = 0
    return model


def make_gpt2() -> Any:
    """Two blocks of Conv1D with fused queries, keys and values, and dropout."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2)
    )


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.ndim > 1}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def structure(model: nn.Module) -> Any:
    """Return all state that a run could change, except the weights."""
    modules = {name: (type(module), sorted(vars(module)), module.training) for name, module in model.named_modules()}
    return modules, {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("recipe", [None, tb.recipes.model_balancing()], ids=["plain", "balanced"])
def test_recovery_lowers_the_loss_and_keeps_every_zero(pruned: Any, tokens: list[Tensor], recipe: Any):
    before, mask = values(pruned), zeros(pruned)
    text = [torch.arange(16).repeat(4) for _ in range(8)]
    done = recover(pruned, text, FAST, recipe=recipe)
    assert len(done.losses) == 2 * 8
    assert done.losses[-1] < done.losses[0] - 0.1
    assert same(zeros(pruned), mask)
    changed = {name for name, now in values(pruned).items() if not torch.equal(now, before[name])}
    assert changed == set(done.sparsity) == {name for name in before if "layers" in name and "proj" in name}
    assert sorted({round(share, 2) for share in done.sparsity.values()}) == [0.5, 0.7]


@pytest.mark.parametrize("make", ["llama", "gpt2", "bfloat16"])
def test_the_merged_model_has_the_outputs_and_alphas_of_the_adapted_one(make: str, make_llama: Any):
    model = prune_blocks(make_gpt2() if make == "gpt2" else make_llama()).eval()
    model = model.bfloat16() if make == "bfloat16" else model
    layers = [
        name for name, module in model.named_modules() if hasattr(module, "weight") and (module.weight == 0).any()
    ]
    mask, ids = zeros(model), torch.arange(24).view(2, 12)
    with sparse_lora(model, layers, rank=4) as factors, torch.no_grad():
        for factor in factors:
            factor.normal_(std=0.2, generator=torch.Generator().manual_seed(factor.numel()))
        adapted = model(input_ids=ids).logits
        alphas = [row.alpha for row in tb.analyze(model, progress=False).layers]
    assert len(factors) == 2 * len(layers) > 0
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, adapted)
    merged = [row.alpha for row in tb.analyze(model, progress=False).layers]
    rounded = 2e-3 if make == "bfloat16" else 1e-6  # before, the weight was measured in float32, the dtype of factors
    assert merged == pytest.approx(alphas, rel=rounded, nan_ok=True)
    now = zeros(model)
    assert all(bool(now[name][were].all()) for name, were in mask.items())
    assert same(now, mask) or make == "bfloat16"  # in half precision W and its update may cancel


def test_recovery_trains_the_fused_layers_of_gpt2(tokens: list[Tensor]):
    model = prune_blocks(make_gpt2())
    mask = zeros(model)
    done = recover(model, tokens, FAST)
    assert "transformer.h.1.attn.c_attn.weight" in done.sparsity
    assert same(zeros(model), mask)


def test_recovery_balances_blocks_by_the_alphas_of_their_pruned_weights(make_llama: Any, tokens: list[Tensor]):
    model = prune_blocks(make_llama(hidden_size=64))
    weights = [p.detach() for p in model.model.layers[0].parameters() if p.ndim > 1]
    alphas = [tb.Hill().fit(torch.linalg.svdvals(weight).flip(0).square()).alpha for weight in weights]
    recipe = tb.Recipe(name="all", assignment=tb.assign.Sigmoid(), unit="block")
    first = recover(model, tokens, FAST, recipe=recipe).history[0]
    assert [unit.name for unit in first.units] == ["model.layers.0", "model.layers.1"]
    assert first.units[0].alpha == pytest.approx(sum(alphas) / len(alphas), rel=1e-4)
    assert len({unit.multiplier for unit in first.units}) == 2


def test_recovery_trains_pruned_weights_only(make_llama: Any, tokens: list[Tensor]):
    model = make_llama()
    with torch.no_grad():
        model.get_submodule(UP).weight[:, ::2] = 0
        model.lm_head.weight[0] = 0
    before = values(model)
    assert list(recover(model, tokens, FAST).sparsity) == [f"{UP}.weight"]
    changed = [name for name, now in values(model).items() if not torch.equal(now, before[name])]
    assert changed == [f"{UP}.weight"]


def test_a_dense_model_with_a_few_zeros_is_refused_and_not_changed(make_llama: Any, tokens: list[Tensor]):
    model = make_llama()
    with torch.no_grad():
        model.get_submodule(UP).weight[0, :3] = 0
    before, total = values(model), sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    with pytest.raises(AllocationError, match=f"not pruned: 3 of {total:,} weights .* less than 1% in each layer"):
        recover(model, tokens, FAST)
    assert same(values(model), before)


def test_a_layer_of_a_pruned_model_that_has_a_few_zeros_by_chance_is_not_trained(pruned: Any, tokens: list[Tensor]):
    with torch.no_grad():
        pruned.get_submodule(UP).weight.fill_(0.5)[0, 0] = 0
    done = recover(pruned, tokens, FAST)
    assert f"{UP}.weight" not in done.sparsity
    weights = [pruned.get_parameter(name) for name in done.sparsity]
    total = sum(weight.numel() for weight in weights)
    assert done.mean_sparsity == pytest.approx(sum(int((weight == 0).sum()) for weight in weights) / total)
    assert done.to_dict()["mean_sparsity"] == done.mean_sparsity


def test_a_layer_whose_name_ends_in_that_of_a_pruned_one_gets_no_lora(pruned: Any, make_llama: Any):
    pruned.draft = make_llama()
    with sparse_lora(pruned, [UP], rank=4) as factors:
        assert len(factors) == 2
    assert type(pruned.draft.get_submodule(UP)) is nn.Linear


def test_recovery_depends_on_its_seed_only(pruned: Any, make_llama: Any, tokens: list[Tensor]):
    def result(seed: int, model: Any) -> dict[str, Tensor]:
        recover(model, tokens, RecoverySettings(lr=1e-2, length=16, batch=4, seed=seed))
        return values(model)

    others = [prune_blocks(make_llama().eval()) for _ in range(2)]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = result(1, pruned)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert same(result(1, others[0]), first)
    assert not same(result(2, others[1]), first)


@pytest.mark.parametrize("training", [True, False])
def test_recovery_changes_weights_only(pruned: Any, tokens: list[Tensor], training: bool):
    pruned.train(training)
    pruned.lm_head.weight.requires_grad_(False)
    before = structure(pruned)
    recover(pruned, tokens, FAST)
    recover(pruned, tokens, FAST)  # PEFT would warn of leftovers of the first run
    assert structure(pruned) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_recovery_does_not_change_the_model(pruned: Any, tokens: list[Tensor], error: type[BaseException]):
    before, weights, calls = structure(pruned), values(pruned), []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise error

    handle = pruned.lm_head.register_forward_hook(fail)
    with pytest.raises(error):
        recover(pruned, tokens, FAST)
    handle.remove()
    assert structure(pruned) == before
    assert same(values(pruned), weights)


def test_recovery_that_is_interrupted_while_it_merges_does_not_change_the_model(
    pruned: Any, tokens: list[Tensor], monkeypatch: pytest.MonkeyPatch
):
    import peft

    before, weights, calls = structure(pruned), values(pruned), []
    merge = peft.tuners.lora.Linear.merge

    def interrupted(self: nn.Module, *args: Any, **options: Any) -> None:
        merge(self, *args, **options)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, tokens, FAST)
    assert structure(pruned) == before
    assert same(values(pruned), weights)


def test_a_loss_that_is_not_finite_raises_and_does_not_change_the_model(pruned: Any, tokens: list[Tensor]):
    weights = values(pruned)
    with pytest.raises(NonFiniteError, match="use a lower learning rate"):
        recover(pruned, tokens, RecoverySettings(lr=1e30, length=16))
    assert same(values(pruned), weights)


def test_recovery_of_a_dense_model_is_refused(make_llama: Any, tokens: list[Tensor]):
    with pytest.raises(AllocationError, match="prune it first"):
        recover(make_llama(), tokens, FAST)


def test_recovery_of_a_model_with_adapters_is_refused(pruned: Any, tokens: list[Tensor]):
    import peft

    adapted = peft.get_peft_model(pruned, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AllocationError, match="merge them first"):
        recover(adapted, tokens, FAST)


def test_layers_that_cannot_have_lora_are_refused_and_the_model_is_not_changed(tokens: list[Tensor]):
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config)
    tb.prune(model, tb.allocate_sparsity(tb.analyze(model, progress=False), 0.5), progress=False)
    before, weights = structure(model), values(model)
    with pytest.raises(AllocationError, match="PEFT cannot add LoRA to the pruned layers of MambaForCausalLM"):
        recover(model, tokens, FAST)
    assert structure(model) == before
    assert same(values(model), weights)


@pytest.mark.parametrize("given", [[], [torch.tensor([], dtype=torch.int64)], [torch.arange(15)]])
def test_recovery_with_too_few_tokens_is_refused(pruned: Any, given: list[Tensor]):
    with pytest.raises(TokensError, match=r"fewer than one sequence of 16|there is no token"):
        recover(pruned, given, FAST)


def test_recovery_with_tokens_outside_the_vocabulary_is_refused(pruned: Any):
    with pytest.raises(TokensError, match="not in the vocabulary of 64"):
        recover(pruned, [torch.arange(100)], FAST)


def test_recovery_of_a_model_without_a_head_is_refused(pruned: Any, tokens: list[Tensor]):
    with pytest.raises(TokensError, match="LlamaModel has no head that predicts the next token"):
        recover(pruned.model, tokens, FAST)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"epochs": 0}, {"length": 1}])
def test_invalid_recovery_settings_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="must be"):
        RecoverySettings(**wrong)


def test_without_peft_the_extra_is_named(pruned: Any, tokens: list[Tensor], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    before = structure(pruned)
    with pytest.raises(MissingExtraError, match=r"tempbalance\[peft\]"):
        recover(pruned, tokens, FAST)
    assert structure(pruned) == before


def test_a_recovered_model_is_saved_with_its_record(pruned: Any, tokens: list[Tensor], tmp_path: Path):
    source, out = tmp_path / "pruned", tmp_path / "recovered"
    pruned.save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    done = recover(pruned, tokens, FAST, recipe=tb.recipes.model_balancing())
    for _ in range(2):  # the second replaces the first
        save_recovered(pruned, done, out, source)
    assert same(values(load_causal_lm(out)), values(pruned))
    assert (out / "tokenizer.json").read_text() == "{}"
    record = json.loads((out / "recovery.json").read_text())
    assert record["settings"] == {"rank": 8, "lr": 1e-2, "epochs": 2, "batch": 4, "length": 16, "seed": 0}
    assert record["recipe"] == "model_balancing"
    assert record["sparsity"] == done.sparsity
    assert record["losses"] == done.losses
    with pytest.raises(CheckpointError, match=r"not an earlier output \(it has no recovery.json\)"):
        save_recovered(pruned, done, source)
