"""Balancing in trainers that are derived from the Hugging Face Trainer: TRL and Sentence Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tempbalance as tb

from .conftest import NEUTRAL, same, spread, states_of, trained_at_rates_of_units

transformers = pytest.importorskip("transformers")

from tempbalance.integrations.transformers import BalanceMixin, balanced  # noqa: E402

WORDS = ["[PAD]", "[EOS]", "[UNK]", *"the cat sat on mat a dog ran to house".split()]
SIZE = {"vocab_size": len(WORDS), "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
STEPS = 8  # of 4 examples each; 2 epochs
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 4,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_data(**columns: list[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({name: texts * 8 for name, texts in columns.items()})


def make_llama() -> Any:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = transformers.LlamaConfig(num_hidden_layers=3, max_position_embeddings=64, **SIZE, **ids)
    model = transformers.LlamaForCausalLM(config)
    spread(model.model.layers)
    return model


def sft(folder: Path, recipe: tb.Recipe | None, **options: Any) -> Any:
    trl = pytest.importorskip("trl")
    trainer = trl.SFTTrainer if recipe is None else balanced(trl.SFTTrainer)
    return trainer(
        model=make_llama(),
        args=trl.SFTConfig(str(folder), bf16=False, **SETTINGS),
        train_dataset=make_data(text=["the cat sat on the mat", "a dog ran to the house"]),
        processing_class=make_tokenizer(),
        **({} if recipe is None else {"recipe": recipe}),
        **options,
    )


def dpo(folder: Path, recipe: tb.Recipe | None, **options: Any) -> Any:
    trl = pytest.importorskip("trl")
    trainer = trl.DPOTrainer if recipe is None else balanced(trl.DPOTrainer)
    data = make_data(
        prompt=["the cat sat on", "a dog ran to"],
        chosen=[" the mat", " the house"],
        rejected=[" a dog", " a cat"],
    )
    return trainer(
        model=make_llama(),
        ref_model=None if "peft_config" in options else make_llama(),
        args=trl.DPOConfig(str(folder), bf16=False, **SETTINGS),
        train_dataset=data,
        processing_class=make_tokenizer(),
        **({} if recipe is None else {"recipe": recipe}),
        **options,
    )


def sentences(folder: Path, recipe: tb.Recipe | None, *, softmax: bool = False) -> Any:
    """Pairs; ``softmax`` is a loss with a trained layer of its own, which Sentence Transformers does not save."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses, modules

    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(num_hidden_layers=3, **SIZE))
    spread(bert.encoder)
    bert.save_pretrained(folder / "bert")
    make_tokenizer().save_pretrained(folder / "bert")
    body = modules.Transformer(str(folder / "bert"))
    model = st.SentenceTransformer(modules=[body, modules.Pooling(body.get_embedding_dimension())], device="cpu")
    data = make_data(first=["the cat sat", "a dog ran"], second=["on the mat", "to the house"])
    if softmax:
        loss = losses.SoftmaxLoss(model, body.get_embedding_dimension(), num_labels=2)
        data = data.add_column("label", [0, 1] * 8)
    else:
        loss = losses.MultipleNegativesRankingLoss(model)
    trainer = st.SentenceTransformerTrainer if recipe is None else balanced(st.SentenceTransformerTrainer)
    return trainer(
        model=model,
        args=st.SentenceTransformerTrainingArguments(str(folder), **SETTINGS),
        train_dataset=data,
        loss=loss,
        **({} if recipe is None else {"recipe": recipe}),
    )


Make = Callable[..., Any]
every_trainer = pytest.mark.parametrize("make", [sft, dpo, sentences])


def trained(make: Make, folder: Path, recipe: tb.Recipe | None, resume: Path | None = None) -> Any:
    trainer = make(folder, recipe)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


@every_trainer
def test_neutral_multipliers_change_no_bit_and_checkpoints_resume_each_other(make: Make, tmp_path, make_recipe):
    neutral = make_recipe(assignment=NEUTRAL)
    plain, balancing = trained(make, tmp_path / "plain", None), trained(make, tmp_path / "balanced", neutral)
    assert isinstance(balancing, BalanceMixin)
    assert same(states_of(plain.model), states_of(balancing.model))
    keys = ("loss", "learning_rate", "grad_norm")
    logged = [[entry.get(key) for entry in t.state.log_history for key in keys] for t in (plain, balancing)]
    assert logged[0] == logged[1]
    resumed = trained(make, tmp_path / "resumed", neutral, tmp_path / "plain" / "checkpoint-4")
    assert same(states_of(plain.model), states_of(resumed.model))
    assert [refresh.step for refresh in resumed.balancer.history] == [0, 2]
    resumed = trained(make, tmp_path / "resumed", None, tmp_path / "balanced" / "checkpoint-4")
    assert same(states_of(plain.model), states_of(resumed.model))
    assert not same(states_of(plain.model), states_of(trained(make, tmp_path / "other", make_recipe()).model))


@every_trainer
def test_the_rate_of_each_block_is_multiplier_times_scheduled_rate(make: Make, tmp_path, make_recipe):
    trainer = make(tmp_path, make_recipe(unit="block"))
    optimizer = trainer.create_optimizer()
    refreshes = trained_at_rates_of_units(trainer, STEPS)
    assert len(refreshes[0].units) == 3
    assert {unit.multiplier for unit in refreshes[0].units} >= {0.5, 1.5}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {"alpha_imbalance", "multiplier_min"} <= trainer.state.log_history[0].keys()


@every_trainer
def test_a_resumed_run_is_bit_identical(make: Make, tmp_path, make_recipe):
    recipe = make_recipe(every=tb.Every(epochs=0.5), tolerance=0.2)
    whole = trained(make, tmp_path, recipe)
    resumed = trained(make, tmp_path, recipe, tmp_path / "checkpoint-4")
    assert same(states_of(whole.model), states_of(resumed.model))
    assert resumed.balancer.units == whole.balancer.units
    assert [refresh.step for refresh in resumed.balancer.history] == [4, 6]


@pytest.mark.parametrize("make", [sft, dpo])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads it
def test_adapters_of_trl_are_balanced(make: Make, tmp_path, make_recipe):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(tmp_path, make_recipe(unit="block"), peft_config=config)
    trainer.train()
    assert len(trainer.balancer.units) == 3
    assert {unit.multiplier for unit in trainer.balancer.units} >= {0.5, 1.5}


def test_a_loss_with_a_layer_of_its_own_keeps_the_base_rate(tmp_path, make_recipe):
    torch.manual_seed(0)
    plain = sentences(tmp_path, None, softmax=True)
    plain.train()
    torch.manual_seed(0)
    neutral = sentences(tmp_path, make_recipe(assignment=NEUTRAL), softmax=True)
    neutral.train()
    assert same(states_of(plain.model), states_of(neutral.model))
    assert same(states_of(plain.loss.classifier), states_of(neutral.loss.classifier))
    trainer = sentences(tmp_path, make_recipe(), softmax=True)
    rates: set[float] = set()

    def note(optimizer: Any, *_: Any) -> None:
        groups = [g for g in optimizer.param_groups if any(p is trainer.loss.classifier.weight for p in g["params"])]
        rates.update(group["lr"] for group in groups)

    trainer.create_optimizer().register_step_pre_hook(note)
    trainer.train()
    assert rates == {entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
