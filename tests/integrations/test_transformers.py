"""Balancing in the Hugging Face Trainer: learning rates, resumed runs and logs."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import tempbalance as tb
from tempbalance.errors import ArgumentError

from .conftest import NEUTRAL, same, spread, states_of, trained_at_rates_of_units

transformers = pytest.importorskip("transformers")

from tempbalance.integrations.transformers import BalancedTrainer, BalanceMixin, balanced  # noqa: E402

EXAMPLES = 24
EPOCHS = tb.Every(epochs=0.5)


class Data(torch.utils.data.Dataset):
    def __init__(self, length: int = EXAMPLES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, 60, (length, 8), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": int(self.ids[index, 0]) % 2}


class Stream(IterableDataset):
    """The same without a length."""

    def __iter__(self):
        data = Data()
        return (data[i] for i in range(len(data)))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
    )
    model = transformers.BertForSequenceClassification(config)  # with dropout, so random states matter, too
    spread(model.bert.encoder)
    return model


def make_trainer(folder: Path, recipe: tb.Recipe | str | None, trainer: type | None = None, **settings: Any) -> Any:
    """A trainer of 6 batches per epoch of 4 examples each."""
    keywords: dict[str, Any] = {} if recipe is None else {"recipe": recipe}
    own = ("exact", "delay", "dtype", "on_refresh", "optimizers")
    keywords |= {key: settings.pop(key) for key in own if key in settings}
    keywords |= {"model": settings.pop("model", None) or make_model()}
    keywords |= {"train_dataset": settings.pop("train_dataset", None) or Data()}
    quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    usual = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "num_train_epochs": 2}
    settings = {**quiet, **usual, "lr_scheduler_type": "cosine", **settings}
    args = transformers.TrainingArguments(output_dir=str(folder), **settings)
    chosen = trainer or (transformers.Trainer if recipe is None else BalancedTrainer)
    return chosen(args=args, **keywords)


def trained(folder: Path, recipe: tb.Recipe | None) -> tuple[Any, torch.Tensor]:
    """A trainer that has trained, and torch's random state after it; building a trainer sets the seed."""
    trainer = make_trainer(folder, recipe)
    trainer.train()
    return trainer, torch.get_rng_state()


class TestTraining:
    def test_neutral_multipliers_change_no_bit_and_others_do(self, tmp_path, make_recipe):
        plain, state = trained(tmp_path, None)
        neutral, neutral_state = trained(tmp_path, make_recipe(assignment=NEUTRAL))
        assert len(neutral.balancer.history) == 6
        assert same(states_of(plain.model), states_of(neutral.model))
        assert torch.equal(state, neutral_state)  # nor was a random number drawn
        logged = [
            [entry.get(key) for entry in trainer.state.log_history for key in ("loss", "learning_rate", "grad_norm")]
            for trainer in (plain, neutral)
        ]
        assert logged[0] == logged[1]
        balancing, _ = trained(tmp_path, make_recipe())
        assert not same(states_of(plain.model), states_of(balancing.model))

    def test_the_rate_is_multiplier_times_scheduled_rate(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), weight_decay=0.1, warmup_steps=3, gradient_accumulation_steps=2)
        optimizer = trainer.create_optimizer()
        refreshes = trained_at_rates_of_units(trainer, 6)  # 12 batches, 2 of them to a step
        assert [refresh.step for refresh in refreshes] == [0, 2, 4]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]  # the groups of the Trainer

    @pytest.mark.parametrize("tolerance", [0.0, 0.2])
    def test_a_resumed_run_is_bit_identical(self, tmp_path, make_recipe, tolerance):
        recipe = make_recipe(tolerance=tolerance, every=tb.Every(epochs=0.34))  # 2 of 6 steps
        save = {"save_strategy": "steps", "save_steps": 7, "weight_decay": 0.1}
        whole = make_trainer(tmp_path, recipe, **save)
        whole.train()
        resumed = make_trainer(tmp_path, recipe, **save)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
        assert same(states_of(whole.model), states_of(resumed.model))
        assert resumed.balancer.units == whole.balancer.units
        assert [refresh.step for refresh in resumed.balancer.history] == [8, 10]
        measured = [refresh.measured for refresh in whole.balancer.history]
        assert [refresh.measured for refresh in resumed.balancer.history] == measured[4:]

    def test_asynchronous_measuring_takes_effect_after_its_delay(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), delay=2, max_steps=6)
        trainer.train()
        assert [(refresh.step, refresh.applied) for refresh in trainer.balancer.history] == [(0, 2), (2, 4)]

    def test_the_dtype_is_that_of_the_balancer(self, tmp_path, make_recipe):
        make_trainer(tmp_path, make_recipe(), dtype="float32").create_optimizer()
        with pytest.raises(ArgumentError, match="got 'float16'"):
            make_trainer(tmp_path, make_recipe(), dtype="float16").create_optimizer()

    def test_with_exact_every_weight_is_measured_at_every_refresh(self, tmp_path, make_recipe):
        recipe = make_recipe(tolerance=5.0)  # more than any alpha moves
        fewest = [
            [refresh.measured for refresh in trainer.balancer.history]
            for trainer in (make_trainer(tmp_path, recipe, max_steps=3, exact=exact) for exact in (False, True))
            if trainer.train()
        ]
        assert fewest[0][1] < fewest[1][1] == fewest[1][0] == fewest[0][0]

    def test_training_again_continues_with_the_same_balancer(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), max_steps=3)
        trainer.train()
        balancer = trainer.balancer
        trainer.train()
        assert trainer.balancer is balancer
        assert [refresh.step for refresh in balancer.history] == [0, 2, 4]

    def test_a_new_model_gets_a_new_balancer(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), max_steps=1)
        trainer.train()
        first = trainer.balancer
        trainer.model = trainer.model_wrapped = make_model()  # as hyperparameter_search does with model_init
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.train()
        assert trainer.balancer is not first
        assert len(trainer.balancer.history) == 1

    def test_an_optimizer_and_scheduler_passed_to_the_trainer_are_used(self, tmp_path, make_recipe):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        trainer = make_trainer(tmp_path, make_recipe(), model=model, optimizers=(optimizer, scheduler), max_steps=3)
        trainer.train()
        assert trainer.balancer.optimizer is optimizer
        assert {group["lr"] for group in optimizer.param_groups} == {0.1 * 0.5**3}

    def test_training_in_bfloat16_measures_and_balances(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), bf16=True, max_steps=3)
        trainer.train()
        assert min(unit.multiplier for unit in trainer.balancer.units) == 0.5

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads it
    def test_training_with_lora_balances_the_adapted_layers(self, tmp_path, make_recipe):
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
        model = peft.get_peft_model(make_model(), config)
        recipe = make_recipe(unit="block", tolerance=0.2)
        save = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
        trainer = make_trainer(tmp_path, recipe, model=model, **save)
        trainer.train()
        assert len(trainer.balancer.units) == 3
        assert {unit.multiplier for unit in trainer.balancer.units} >= {0.5, 1.5}
        torch.manual_seed(0)
        resumed = make_trainer(tmp_path, recipe, model=peft.get_peft_model(make_model(), config), **save)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert same(states_of(trainer.model), states_of(resumed.model))


SAVE = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Any:
    """A plain Trainer that has trained, with its checkpoints."""
    trainer = make_trainer(tmp_path_factory.mktemp("plain"), None, **SAVE)
    trainer.train()
    return trainer


class TestInterchange:
    """Checkpoints of the plain Trainer and of the balanced one, after 4 of 8 steps."""

    def resumed(self, saved: Any, folder: Path, recipe: tb.Recipe | None) -> Any:
        trainer = make_trainer(folder, recipe, **SAVE)
        trainer.train(resume_from_checkpoint=str(Path(saved.args.output_dir) / "checkpoint-4"))
        return trainer

    def resumed_plain(self, folder: Path, recipe: tb.Recipe) -> Any:
        saved = make_trainer(folder / "saved", recipe, **SAVE)
        saved.train()
        return self.resumed(saved, folder, None)

    def test_a_neutral_run_resumes_a_plain_checkpoint_to_the_same_bits(self, plain, tmp_path, make_recipe, caplog):
        with caplog.at_level(logging.INFO, "tempbalance"):
            resumed = self.resumed(plain, tmp_path, make_recipe(assignment=NEUTRAL))
        assert same(states_of(resumed.model), states_of(plain.model))
        assert [refresh.step for refresh in resumed.balancer.history] == [0, 2]  # counted from the checkpoint
        (line,) = [r.getMessage() for r in caplog.records if "without tempbalance" in r.getMessage()]
        assert "balancing starts afresh" in line

    def test_a_balanced_run_resumes_a_plain_checkpoint_and_balances(self, plain, tmp_path, make_recipe):
        resumed = self.resumed(plain, tmp_path, make_recipe())
        assert {unit.multiplier for unit in resumed.balancer.units} >= {0.5, 1.5}

    @pytest.mark.parametrize("tolerance", [0.0, 0.2])
    def test_a_plain_run_resumes_a_neutral_checkpoint_to_the_same_bits(self, plain, tmp_path, make_recipe, tolerance):
        resumed = self.resumed_plain(tmp_path, make_recipe(assignment=NEUTRAL, tolerance=tolerance))
        assert same(states_of(resumed.model), states_of(plain.model))

    def test_a_plain_run_resumes_a_balanced_checkpoint(self, plain, tmp_path, make_recipe):
        resumed = self.resumed_plain(tmp_path, make_recipe(tolerance=0.2))
        assert not same(states_of(resumed.model), states_of(plain.model))
        assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.1, 0.0]


class TestStepsPerEpoch:
    """A recipe that measures twice per epoch shows what the trainer takes for an epoch."""

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({}, [0, 3, 6, 9]),
            ({"gradient_accumulation_steps": 2}, [0, 1, 2, 3, 4, 5]),  # 3 steps
            ({"gradient_accumulation_steps": 4}, [0, 1, 2, 3]),  # 2 steps, the second with 2 batches
            ({"per_device_train_batch_size": 5}, [0, 2, 4, 6, 8]),  # 5 batches, the last with 4 examples
            ({"per_device_train_batch_size": 5, "dataloader_drop_last": True}, [0, 2, 4, 6]),  # 4 batches
            ({"max_steps": 7}, [0, 3, 6]),
        ],
    )
    def test_steps_per_epoch_are_those_of_the_trainer(self, tmp_path, make_recipe, settings, steps):
        trainer = make_trainer(tmp_path, make_recipe(every=EPOCHS), **settings)
        trainer.create_optimizer()
        before = trainer.balancer
        assert "every 0.5 epochs" in repr(before)  # until there is a loader
        trainer.train()
        assert trainer.balancer is before
        assert [refresh.step for refresh in trainer.balancer.history] == steps

    def test_steps_per_epoch_follow_a_custom_loader(self, tmp_path, make_recipe):
        class Mine(BalancedTrainer):
            def get_train_dataloader(self):
                return torch.utils.data.DataLoader(Data(8), batch_size=2, collate_fn=self.data_collator)

        trainer = make_trainer(tmp_path, make_recipe(every=EPOCHS), trainer=Mine)
        trainer.train()
        assert [refresh.step for refresh in trainer.balancer.history] == [0, 2, 4, 6]

    def test_a_recipe_in_epochs_is_refused_for_data_without_length(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(every=EPOCHS), train_dataset=Stream(), max_steps=2)
        with pytest.raises(tb.errors.BalanceError, match=r"counts in epochs, but the training data has no length"):
            trainer.train()

    @pytest.mark.parametrize("every", [EPOCHS, tb.Every(steps=3)], ids=["epochs", "steps"])
    def test_training_again_with_another_loader_counts_in_its_epochs(self, tmp_path, make_recipe, every):
        trainer = make_trainer(tmp_path, make_recipe(every=every), max_steps=4)
        trainer.train()
        first = trainer.balancer
        trainer.train_dataset = Data(8)  # 2 steps per epoch instead of 6
        trainer.train()
        assert (trainer.balancer is first) == (every is not EPOCHS)
        steps = [refresh.step for refresh in trainer.balancer.history]
        assert steps == ([0, 1, 2, 3] if every is EPOCHS else [0, 3, 6])

    def test_a_recipe_in_steps_works_for_data_without_length(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), train_dataset=Stream(), max_steps=4)
        trainer.train()
        assert [refresh.step for refresh in trainer.balancer.history] == [0, 2]

    def test_balancing_does_not_change_the_random_state(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(every=EPOCHS))
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        trainer.create_optimizer()
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


class TestLogging:
    KEYS = ("alpha_imbalance", "multiplier_min", "multiplier_max")

    def test_the_first_log_after_a_refresh_has_its_summary(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(), max_steps=6, logging_steps=2, save_strategy="steps")
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in logged] == [2, 4, 6]
        assert [tuple(entry[key] for key in self.KEYS) for entry in logged] == [
            (refresh.imbalance, 0.5, 1.5) for refresh in trainer.balancer.history
        ]
        assert json.loads(json.dumps(trainer.state.log_history)) == trainer.state.log_history

    def test_the_summary_of_a_refresh_is_logged_once_and_not_in_the_final_log(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe(every=tb.Every(steps=4)), max_steps=6)
        trainer.train()
        assert [e["step"] for e in trainer.state.log_history if "alpha_imbalance" in e] == [1, 5]

    def test_the_summary_of_a_refresh_reaches_the_logging_backends(self, tmp_path, make_recipe, monkeypatch):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
        trainer = make_trainer(tmp_path, make_recipe(), max_steps=3, report_to=["tensorboard"])
        trainer.train()
        events = EventAccumulator(str(tmp_path / "runs")).Reload()
        assert [e.step for e in events.Scalars("train/alpha_imbalance")] == [1, 3]
        assert [e.value for e in events.Scalars("train/multiplier_max")] == [1.5, 1.5]

    def test_callables_get_every_refresh(self, tmp_path, make_recipe):
        seen: list[tb.balance.Refresh] = []
        trainer = make_trainer(tmp_path, make_recipe(), max_steps=6, logging_steps=100, on_refresh=[seen.append])
        trainer.train()
        assert seen == trainer.balancer.history
        assert [refresh.step for refresh in seen] == [0, 2, 4]


class TestOtherTrainers:
    def test_balanced_makes_one_subclass_per_trainer_class(self, tmp_path, make_recipe):
        made = balanced(transformers.Seq2SeqTrainer)
        assert issubclass(made, transformers.Seq2SeqTrainer)
        assert issubclass(made, BalanceMixin)
        assert balanced(transformers.Seq2SeqTrainer) is made
        assert balanced(made) is made
        assert balanced(transformers.Trainer) is BalancedTrainer

    def test_a_trainer_that_creates_its_own_optimizer_is_balanced(self, tmp_path, make_recipe):
        class Theirs(transformers.Trainer):
            def create_optimizer(self, *args, **kwargs):
                if self.optimizer is None:
                    self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
                return self.optimizer

        class Mine(BalanceMixin, Theirs):
            pass

        for trainer_class in (Mine, balanced(Theirs)):
            trainer = make_trainer(tmp_path, make_recipe(), trainer=trainer_class, max_steps=1)
            trainer.train()
            assert type(trainer.balancer.optimizer) is torch.optim.SGD


class TestBadInput:
    def test_a_balanced_trainer_without_a_recipe_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="recipe"):
            BalancedTrainer(make_model(), transformers.TrainingArguments(str(tmp_path), report_to=[]))

    def test_a_recipe_can_be_given_by_name_and_an_unknown_one_is_refused(self, tmp_path):
        trainer = make_trainer(tmp_path, "model_balancing:strength=0.5")
        assert trainer.recipe == tb.recipes.model_balancing(strength=0.5)
        with pytest.raises(tb.errors.StudyError, match="there is no method 'magic'"):
            make_trainer(tmp_path, "magic")

    def test_a_recipe_function_instead_of_a_recipe_is_refused(self, tmp_path):
        with pytest.raises(tb.errors.BalanceError, match=r"model_balancing\(\), got the function llr"):
            make_trainer(tmp_path, tb.recipes.llr)

    @pytest.mark.parametrize("what", [nn.Linear, "Trainer", transformers.TrainerCallback])
    def test_only_trainers_can_be_balanced(self, what):
        with pytest.raises(tb.errors.BalanceError, match=r"subclass of transformers\.Trainer"):
            balanced(what)

    @pytest.mark.parametrize(("flag", "message"), [("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP1")])
    def test_deepspeed_and_fsdp1_are_refused_before_training(self, tmp_path, make_recipe, flag, message):
        class Theirs(transformers.Trainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                setattr(self, flag, True)
                self.accelerator.state.fsdp_plugin = None

        with pytest.raises(tb.errors.BalanceError, match=rf"{message}.*fully_shard"):
            make_trainer(tmp_path, make_recipe(), trainer=balanced(Theirs))

    def test_a_model_that_has_nothing_to_balance_is_refused(self, tmp_path, make_recipe):
        trainer = make_trainer(tmp_path, make_recipe())
        for parameter in trainer.model.bert.parameters():
            parameter.requires_grad = False
        trainer.model.classifier.weight.requires_grad = False
        with pytest.raises(tb.errors.BalanceError, match="not trained: frozen"):
            trainer.train()
