"""Pruning live models: the exact number of zeros, the right weights, and no other change."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import tempbalance as tb
from tempbalance.compress import LayerAllocation
from tempbalance.errors import AllocationError, NonFiniteError, TokensError

transformers = pytest.importorskip("transformers")


def counts(model, allocation):
    parameters = dict(model.named_parameters())
    return {layer.name: int((parameters[layer.name] == 0).sum()) for layer in allocation.layers}


def allocate(model, sparsity=0.5, **options):
    return tb.allocate_sparsity(tb.analyze(model), sparsity, **{"method": "alpha", **options})


def layer(name, shape, zeros):
    return LayerAllocation(name=name, unit=name, shape=shape, zeros=zeros)


def by_hand(*layers, **options):
    total = sum(s.numel for s in layers)
    part = sum(s.zeros for s in layers) / total
    return tb.Allocation(source="m", budget=part, method="by hand", unit="layer", layers=layers, **options)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_every_matrix_gets_the_allocated_number_of_zeros(method, make_llama, tokens):
    model = make_llama()
    allocation = allocate(model, 0.6123, method="depth", unit="layer")
    achieved = tb.prune(model, allocation, method, calibration=tokens)
    assert counts(model, allocation) == {layer.name: layer.zeros for layer in allocation.layers}
    assert achieved == dict(allocation)
    assert len({layer.zeros / layer.numel for layer in allocation.layers}) > 2


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_remaining_weights_modes_and_hooks_do_not_change(method, make_llama, tokens):
    model = make_llama().train()
    before = copy.deepcopy(model.state_dict())
    allocation = allocate(model)
    tb.prune(model, allocation, method, calibration=tokens)
    for name, tensor in model.state_dict().items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept]), name
        assert name in allocation or torch.equal(tensor, before[name]), name
    assert model.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("measured_for", "method", "warns"),
    [("", "magnitude", 0), ("magnitude", "magnitude", 0), ("wanda", "magnitude", 1), ("magnitude", "wanda", 1)],
)
def test_an_allocation_that_was_measured_for_another_criterion_is_reported(
    measured_for, method, warns, make_llama, tokens, caplog
):
    model = make_llama()
    tb.prune(model, dataclasses.replace(allocate(model), criterion=measured_for), method, calibration=tokens)
    assert caplog.text.count(f"measured for {measured_for}: prune by {measured_for}, or allocate for {method}") == warns


def test_magnitude_prunes_the_smallest_weights(trained):
    weight = trained[0].weight.detach().clone()
    tb.prune(trained, by_hand(layer("0.weight", (80, 80), 1000)))
    gone = trained[0].weight == 0
    assert weight[gone].abs().max() <= weight[~gone].abs().min()


def test_wanda_agrees_with_a_naive_pass_over_the_model_for_every_layer(make_llama, tokens, naive_wanda):
    model, oracle = make_llama(), make_llama()
    allocation = allocate(model, 0.5, method="uniform")
    tb.prune(model, allocation, "wanda", calibration=tokens)
    waiting = {}
    for name, scores in naive_wanda(oracle, allocation, tokens):
        if scores is not None:
            waiting[name] = scores
            continue
        for layer, found in waiting.items():
            weight = oracle.get_parameter(layer)
            half = weight.shape[1] // 2
            order = found.argsort(dim=1)
            with torch.no_grad():
                weight.scatter_(1, order[:, :half], 0.0)
        waiting = {}
    for name in allocation:
        differing = ((model.get_parameter(name) == 0) != (oracle.get_parameter(name) == 0)).sum()
        assert int(differing) <= 2, name  # ties in float32


@pytest.mark.parametrize(
    "config",
    [
        transformers.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32,
        ),
        transformers.Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, use_sliding_window=True, max_window_layers=1, sliding_window=8,
        ),
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        transformers.OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        transformers.GPTNeoXConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        ),
        transformers.Gemma3TextConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=8, sliding_window_pattern=2,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_language_models_of_many_architectures_are_pruned_as_allocated(config, method, tokens):
    """Fused weights (GPT-2, transposed; GPT-NeoX, by head), local and global attention, other module names."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    allocation = allocate(model, 0.5, epsilon=0.2)
    achieved = tb.prune(model, allocation, method, calibration=tokens)
    assert achieved == dict(allocation)
    total = sum(int((p == 0).sum()) for name, p in model.named_parameters() if p.ndim == 2)
    assert total >= sum(layer.zeros for layer in allocation.layers)


def test_wanda_prunes_each_output_of_a_conv1d_equally(tokens):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    allocation = allocate(model, 0.5, method="uniform")
    tb.prune(model, allocation, "wanda", calibration=tokens)
    weight = model.transformer.h[0].mlp.c_fc.weight  # (inputs, outputs)
    assert (weight == 0).sum(dim=0).tolist() == [16] * 128


def test_stacked_experts_are_pruned_by_magnitude_only():
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config)
    allocation = allocate(model, 0.5)
    assert any(":" in name for name in allocation)
    assert tb.prune(model, allocation) == dict(allocation)
    with pytest.raises(AllocationError, match="by magnitude"):
        tb.prune(model, allocation, "wanda", calibration=[torch.arange(9)])


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_n_of_m_sparsity_is_the_same_in_every_group_of_a_layer(method, make_llama, tokens):
    model = make_llama()
    allocation = allocate(model, 0.5, method="depth", epsilon=0.5, group=8)
    tb.prune(model, allocation, method, calibration=tokens)
    kept = set()
    for layer in allocation.layers:
        groups = (model.get_parameter(layer.name) == 0).view(-1, 8).sum(dim=1).unique()
        assert groups.tolist() == [8 * layer.zeros // layer.numel]
        kept.add(int(groups))
    assert len(kept) == 2  # mixed
    assert sum(layer.zeros for layer in allocation.layers) / sum(layer.numel for layer in allocation.layers) == 0.5


def test_a_wrapped_model_is_pruned(make_llama):
    model = make_llama()
    allocation = allocate(model)
    assert tb.prune(nn.DataParallel(model), allocation) == dict(allocation)


def test_prune_by_sparsegpt_gives_the_allocated_sparsity(make_llama, tokens):
    pytest.importorskip("llmcompressor", reason="needs llm-compressor")
    model = make_llama()
    allocation = allocate(model, 0.6, method="depth")
    assert tb.prune(model, allocation, "sparsegpt", calibration=tokens) == dict(allocation)


class TestRefusals:
    def test_prune_refuses_an_allocation_for_another_model(self, trained):
        with pytest.raises(AllocationError, match=r"another model.*no 9\.weight"):
            tb.prune(trained, by_hand(layer("9.weight", (80, 80), 1)))
        with pytest.raises(AllocationError, match=r"another model.*\(80, 80\) here and \(80, 81\)"):
            tb.prune(trained, by_hand(layer("0.weight", (80, 81), 1)))

    def test_prune_refuses_an_allocation_of_bits(self, trained):
        allocation = tb.allocate_bits(tb.analyze(trained, progress=False), 3)
        with pytest.raises(AllocationError, match="expected an allocation of sparsity, got one of bits"):
            tb.prune(trained, allocation)

    def test_an_unknown_pruning_criterion_is_refused(self, trained):
        with pytest.raises(AllocationError, match="magnitude, wanda, sparsegpt"):
            tb.prune(trained, by_hand(layer("0.weight", (80, 80), 1)), "random")

    @pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
    @pytest.mark.parametrize(("nothing", "message"), [(None, "needs calibration tokens"), ([], "there is no token")])
    def test_wanda_or_sparsegpt_without_calibration_is_refused(self, method, nothing, message, make_llama):
        model = make_llama()
        with pytest.raises(TokensError, match=message):
            tb.prune(model, allocate(model), method, calibration=nothing)

    def test_prune_names_a_weight_with_nan_and_changes_nothing(self, trained):
        with torch.no_grad():
            trained[1].weight[0, 0] = torch.nan
        before = copy.deepcopy(trained[0].weight)
        with pytest.raises(NonFiniteError, match=r"1\.weight: a weight is NaN"):
            tb.prune(trained, by_hand(*(layer(f"{i}.weight", (80, 80), 10) for i in range(2))))
        assert torch.equal(trained[0].weight, before)

    def test_wanda_refuses_a_weight_outside_blocks(self, trained):
        with pytest.raises(AllocationError, match=r"not 0\.weight: prune it by magnitude"):
            tb.prune(trained, by_hand(layer("0.weight", (80, 80), 10)), "wanda", calibration=[torch.arange(4)])

    def test_prune_refuses_a_weight_with_an_adapter(self, make_llama):
        peft = pytest.importorskip("peft")
        adapted = peft.get_peft_model(make_llama(), peft.LoraConfig(target_modules=["q_proj"], r=2))
        with pytest.raises(AllocationError, match="merge"):
            tb.prune(adapted, allocate(adapted))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("layers.0.mlp.up_proj.bias", r"layers\.0\.mlp\.down_proj: an activation is not finite"),
            ("layers.1.mlp.down_proj.weight", r"layers\.1\.mlp\.down_proj\.weight: a weight is not finite"),
        ],
    )
    @pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
    def test_values_that_are_not_finite_are_refused_and_nothing_changes(
        self, method, wrong, message, make_llama, tokens
    ):
        if method == "sparsegpt":
            pytest.importorskip("llmcompressor", reason="needs llm-compressor")
        model = make_llama(mlp_bias=True)
        allocation = allocate(model, method="uniform")
        with torch.no_grad():
            model.model.get_parameter(wrong).fill_(torch.inf)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(NonFiniteError, match=message):
            tb.prune(model, allocation, method, calibration=tokens)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_group_that_does_not_divide_the_weights_is_refused(self, make_llama):
        with pytest.raises(AllocationError, match="groups of 7"):
            allocate(make_llama(), 0.5, group=7)

    def test_a_group_that_divides_the_weights_but_not_the_inputs_is_refused_and_nothing_changes(self, make_llama):
        model = make_llama(intermediate_size=68)
        message = r"layers.0.mlp.down_proj.weight: its inputs cannot be divided into groups of 8 .* \(32, 68\)"
        with pytest.raises(AllocationError, match=message):
            allocate(model, 0.5, group=8)
        up = layer("model.layers.0.mlp.up_proj.weight", (68, 32), 1088)
        allocation = by_hand(up, layer("model.layers.0.mlp.down_proj.weight", (32, 68), 1088), group=8)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(AllocationError, match=message):
            tb.prune(model, allocation, partial=True)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_groups_of_a_conv1d_are_along_its_inputs(self):
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_inner=60, n_layer=1, n_head=4, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
        with pytest.raises(AllocationError, match=r"c_proj.weight: its inputs .* groups of 8 .* \(32, 60\)"):
            allocate(model, 0.5, group=8)
        assert allocate(model, 0.5, group=4).group == 4


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_model_with_wrapped_blocks_is_pruned_as_without(make_llama, method):
    tokens = [torch.arange(20), torch.arange(10, 30)]
    plain, wrapped = make_llama(), make_llama()
    for i, block in enumerate(wrapped.model.layers):
        wrapped.model.layers[i] = checkpoint_wrapper(block)
    wrapped = torch.nn.DataParallel(wrapped)
    found = []
    for model in (plain, wrapped):
        allocation = tb.allocate_sparsity(tb.analyze(model), 0.5, method="uniform")
        found.append(tb.prune(model, allocation, method, calibration=tokens))
    assert found[0] == found[1]
    pairs = zip(plain.parameters(), wrapped.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_sparsegpt_refuses_wrapped_blocks_before_it_prunes(make_llama):
    pytest.importorskip("llmcompressor")
    model = make_llama()
    model.model.layers[0] = checkpoint_wrapper(model.model.layers[0])
    before = [parameter.clone() for parameter in model.parameters()]
    allocation = tb.allocate_sparsity(tb.analyze(model), 0.5, method="uniform")
    with pytest.raises(AllocationError, match="unwrap its block"):
        tb.prune(model, allocation, "sparsegpt", calibration=[torch.arange(20)])
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


class TestCoverage:
    @pytest.fixture
    def half(self):
        """Two blocks in which half of the weights are in a module of unknown type, with three axes."""
        layers = torch.nn.ModuleList()
        for _ in range(2):
            block = torch.nn.ModuleDict({"fc": nn.Linear(64, 64), "mix": nn.Module()})
            block["mix"].kernel = nn.Parameter(torch.randn(4, 32, 32))
            layers.append(block)
        return nn.ModuleDict({"layers": layers, "head": nn.Linear(64, 64)})

    def test_prune_refuses_an_allocation_that_covers_little_of_the_blocks(self, half):
        before = copy.deepcopy(half.state_dict())
        allocation = tb.allocate_sparsity(tb.analyze(half), 0.5, method="uniform")
        with pytest.raises(AllocationError, match=r"8,192 of 16,384 weights inside the blocks \(50%\).*partial=True"):
            tb.prune(half, allocation)
        assert all(torch.equal(before[name], tensor) for name, tensor in half.state_dict().items())

    def test_partial_prunes_the_part(self, half):
        allocation = tb.allocate_sparsity(tb.analyze(half), 0.5, method="uniform")
        assert set(tb.prune(half, allocation, partial=True).values()) == {0.5}

    def test_a_part_that_was_selected_is_pruned(self, half):
        analysis = tb.analyze(half, select="*.fc.*")
        assert len(tb.prune(half, tb.allocate_sparsity(analysis, 0.5, method="uniform"))) == 2

    def test_blocks_without_any_row_are_refused_instead_of_pruning_the_head(self):
        layers = nn.ModuleList(nn.ModuleDict({"a": nn.Module(), "b": nn.Module()}) for _ in range(2))
        for block in layers:
            for part in block.values():
                part.kernel = nn.Parameter(torch.randn(4, 32, 32))
        model = nn.ModuleDict({"layers": layers, "head": nn.Linear(64, 64)})
        with pytest.raises(AllocationError, match="no weight inside the blocks"):
            tb.allocate_sparsity(tb.analyze(model), 0.5)


class TestCalibration:
    """Wanda runs, or refuses before it changes a weight."""

    def refuses(self, model, tokens, error, message):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(error, match=message):
            tb.prune(model, allocate(model, method="uniform"), "wanda", calibration=tokens)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.model.modules())

    @pytest.fixture
    def between(self, make_llama):
        """``between(change)``: a model that applies a function to the hidden states between its two blocks."""

        def make(inside, outside=lambda states: states):
            model, running = make_llama(), []
            model.register_forward_pre_hook(lambda *_: running.append(True))
            model.register_forward_hook(lambda *_: running.clear())
            block = model.model.layers[1]
            plain = block.forward
            block.forward = lambda states, *args, **options: plain(
                (inside if running else outside)(states), *args, **options
            )
            return model

        return make

    def test_a_layer_that_is_never_called_is_refused(self, make_llama, tokens):
        model = make_llama()
        model.model.layers[1].unused = nn.Linear(32, 32)
        self.refuses(model, tokens, TokensError, r"no calibration token reached model\.layers\.1\.unused")

    def test_a_weight_that_is_used_without_its_layer_is_refused(self, tokens):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
        model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
        model.model = model.backbone
        self.refuses(model, tokens, TokensError, r"no calibration token reached .*dt_proj")

    def test_blocks_between_which_the_model_computes_are_refused(self, between, tokens):
        self.refuses(between(lambda states: 2 * states), tokens, AllocationError, "one by one do not compute")

    def test_a_block_that_fails_alone_is_refused(self, between, tokens):
        def fail(_):
            raise RuntimeError("needs its model")

        self.refuses(between(lambda states: states, fail), tokens, AllocationError, "needs its model")

    def test_an_encoder_and_a_decoder_are_refused(self, tokens):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 0}
        special = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = transformers.WhisperConfig(**sizes, **heads, **special)
        self.refuses(transformers.WhisperForConditionalGeneration(config), tokens, AllocationError, "one stack")


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_shape_of_calibration_tokens_does_not_change_the_zeros(method, make_llama, tokens):
    equal = [sequence[:16] for sequence in tokens]
    forms = [equal, [t[None] for t in equal], torch.stack(equal), [(t[None], t[None]) for t in equal]]
    forms.append([{"input_ids": t.tolist()} for t in equal])
    found = []
    for form in forms:
        model = make_llama()
        allocation = tb.allocate_sparsity(tb.analyze(model), 0.5, method="uniform")
        tb.prune(model, allocation, method, calibration=form)
        found.append(torch.cat([(parameter == 0).flatten() for parameter in model.parameters()]))
    assert found[0].any()
    assert all(torch.equal(found[0], each) for each in found)


def test_calibration_tokens_outside_the_vocabulary_are_refused(make_llama):
    model = make_llama()
    allocation = tb.allocate_sparsity(tb.analyze(model), 0.5, method="uniform")
    with pytest.raises(TokensError, match="token 64 is not in the vocabulary of 64"):
        tb.prune(model, allocation, "wanda", calibration=[torch.tensor([1, 64])])


def test_experts_stored_as_inputs_by_outputs_are_pruned_in_groups_of_inputs():
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config)
    experts = model.model.layers[0].mlp.experts
    for stack in (experts.gate_up_proj, experts.down_proj):
        nn.init.normal_(stack)
    tb.prune(model, allocate(model, 0.5, method="uniform", group=4))
    for stack, inputs in ((experts.gate_up_proj, 32), (experts.down_proj, 64)):
        assert stack.shape[1] == inputs
        assert ((stack == 0).view(4, inputs // 4, 4, -1).sum(dim=2) == 2).all()
