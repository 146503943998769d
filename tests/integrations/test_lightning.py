"""Balancing in Lightning, under both of its names."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import tempbalance as tb
from tempbalance.errors import ArgumentError

from .conftest import NEUTRAL, applied, make_net, same, states_of

pytest.importorskip("lightning")

from tempbalance.integrations.lightning import BalanceCallback

EPOCHS = tb.Every(epochs=0.5)
BATCHES = 6
Cosine = torch.optim.lr_scheduler.CosineAnnealingLR


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request) -> ModuleType:
    pytest.importorskip(request.param.partition(".")[0])
    return importlib.import_module(request.param)


def make_module(pl: ModuleType, configure: Any = None) -> Any:
    """A module around the small network; ``configure`` turns its parameters into what configure_optimizers returns."""

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.scheduled: list[float] = []

        def training_step(self, batch):
            loss = self.net(batch).square().mean()
            self.log("loss", loss)
            return loss

        def on_before_optimizer_step(self, optimizer):
            configs = self.trainer.lr_scheduler_configs
            self.scheduled += configs[0].scheduler.get_last_lr()[:1] if configs else []

        def configure_optimizers(self):
            if configure is not None:
                return configure(self.parameters())
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Cosine(optimizer, 12), "interval": "step"}}

    return Module()


def loader(dataset: Any = None) -> DataLoader:
    data = torch.randn(4 * BATCHES, 24, generator=torch.Generator().manual_seed(1))
    return DataLoader(data if dataset is None else dataset, batch_size=4)


def make_trainer(pl: ModuleType, folder: Path, *callbacks: Any, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    defaults = {"max_epochs": 2, "accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": folder}
    return pl.Trainer(**{**quiet, **defaults, "callbacks": list(callbacks), **settings})


def fit(pl: ModuleType, folder: Path, *callbacks: Any, configure: Any = None, **settings: Any) -> Any:
    ckpt_path = settings.pop("ckpt_path", None)
    module = make_module(pl, configure)
    make_trainer(pl, folder, *callbacks, **settings).fit(module, loader(), ckpt_path=ckpt_path)
    return module


class TestTraining:
    @pytest.mark.parametrize("every", [tb.Every(steps=2), EPOCHS])
    def test_neutral_multipliers_change_no_bit(self, pl, tmp_path, make_recipe, every):
        torch.manual_seed(5)
        plain = fit(pl, tmp_path)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        callback = BalanceCallback(make_recipe(assignment=NEUTRAL, every=every))
        neutral = fit(pl, tmp_path, callback)
        assert len(callback.balancer.history) > 2
        assert same(states_of(plain), states_of(neutral))
        assert torch.equal(state, torch.get_rng_state())
        assert not same(states_of(plain), states_of(fit(pl, tmp_path, BalanceCallback(make_recipe(every=every)))))

    def test_the_rate_is_multiplier_times_scheduled_rate(self, pl, tmp_path, make_recipe):
        seen: list[dict[str, float]] = []

        class Note(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                applied(callback.balancer, pl_module, seen)

        callback = BalanceCallback(make_recipe())
        module = fit(pl, tmp_path, callback, Note())
        refreshes = [refresh for refresh in callback.balancer.history for _ in range(2)]
        assert [refresh.step for refresh in callback.balancer.history] == [0, 2, 4, 6, 8, 10]
        assert len(seen) == len(module.scheduled) == 12
        assert len(set(module.scheduled)) == 12
        for rates, rate, refresh in zip(seen, module.scheduled, refreshes, strict=True):
            assert rates == {unit.name: rate * unit.multiplier for unit in refresh.units}

    @pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # on purpose, to keep the runs apart
    @pytest.mark.parametrize("tolerance", [0.0, 0.2])
    def test_a_resumed_run_is_bit_identical(self, pl, tmp_path, make_recipe, tolerance):
        recipe = make_recipe(every=tb.Every(epochs=0.67), tolerance=tolerance)  # 4 of 6 steps: epoch 2 begins between

        def run(callback, folder, **settings):
            save = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
            return fit(pl, tmp_path, callback, save, max_epochs=3, enable_checkpointing=True, **settings)

        whole, resumed = BalanceCallback(recipe), BalanceCallback(recipe)
        module = run(whole, tmp_path / "whole")
        again = run(resumed, tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt")
        assert same(states_of(module), states_of(again))
        assert resumed.balancer.units == whole.balancer.units
        assert [r.step for r in whole.balancer.history] == [0, 4, 8, 12, 16]
        assert [(r.step, r.measured) for r in resumed.balancer.history] == [
            (r.step, r.measured) for r in whole.balancer.history[2:]
        ]

    def test_a_checkpoint_saved_after_training_can_be_resumed(self, pl, tmp_path, make_recipe):
        callback = BalanceCallback(make_recipe())
        trainer = make_trainer(pl, tmp_path, callback, max_epochs=1)
        trainer.fit(make_module(pl), loader())
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        resumed = BalanceCallback(make_recipe())
        fit(pl, tmp_path, resumed, ckpt_path=tmp_path / "after.ckpt")
        assert [refresh.step for refresh in resumed.balancer.history] == [6, 8, 10]

    def test_asynchronous_measuring_takes_effect_after_its_delay(self, pl, tmp_path, make_recipe):
        callback = BalanceCallback(make_recipe(), delay=2)
        fit(pl, tmp_path, callback, max_epochs=1)
        assert [(refresh.step, refresh.applied) for refresh in callback.balancer.history] == [(0, 2), (2, 4)]

    def test_the_dtype_is_that_of_the_balancer(self, pl, tmp_path, make_recipe):
        fit(pl, tmp_path, BalanceCallback(make_recipe(), dtype="float32"), max_steps=1)
        with pytest.raises(ArgumentError, match="got 'float16'"):
            fit(pl, tmp_path, BalanceCallback(make_recipe(), dtype="float16"), max_steps=1)

    def test_with_exact_every_weight_is_measured_at_every_refresh(self, pl, tmp_path, make_recipe):
        measured = []
        for exact in (False, True):
            callback = BalanceCallback(make_recipe(tolerance=5.0), exact=exact)
            fit(pl, tmp_path, callback, max_epochs=1)
            measured.append([refresh.measured for refresh in callback.balancer.history])
        assert measured[0][0] == 3
        assert max(measured[0][1:]) < 3
        assert measured[1] == [3, 3, 3]

    def test_accumulated_gradients_are_one_step(self, pl, tmp_path, make_recipe):
        callback = BalanceCallback(make_recipe(every=EPOCHS))
        fit(pl, tmp_path, callback, accumulate_grad_batches=2)
        assert [refresh.step for refresh in callback.balancer.history] == [0, 1, 2, 3, 4, 5]  # epochs of 3 steps
        callback = BalanceCallback(make_recipe(every=EPOCHS))
        fit(pl, tmp_path, callback, accumulate_grad_batches=4)
        assert [refresh.step for refresh in callback.balancer.history] == [0, 1, 2, 3]  # of 2, the second shorter

    def test_the_length_of_an_epoch_does_not_depend_on_max_steps(self, pl, tmp_path, make_recipe):
        callback = BalanceCallback(make_recipe(every=EPOCHS))
        fit(pl, tmp_path, callback, max_epochs=-1, max_steps=5)
        assert [refresh.step for refresh in callback.balancer.history] == [0, 3]


class TestInterchange:
    """Checkpoints without and with balancing, after one of two epochs."""

    def from_checkpoint(self, pl: ModuleType, folder: Path, saved: Any, resumed: Any) -> Any:
        trainer = make_trainer(pl, folder, *filter(None, [saved]), max_epochs=1)
        trainer.fit(make_module(pl), loader())
        trainer.save_checkpoint(folder / "one.ckpt")
        return fit(pl, folder, *filter(None, [resumed]), ckpt_path=folder / "one.ckpt")

    def test_a_plain_checkpoint_resumes_a_balanced_run(self, pl, tmp_path, make_recipe, caplog):
        neutral = BalanceCallback(make_recipe(assignment=NEUTRAL))
        with caplog.at_level(logging.INFO, "tempbalance"):
            resumed = self.from_checkpoint(pl, tmp_path, None, neutral)
        assert same(states_of(fit(pl, tmp_path)), states_of(resumed))
        assert [refresh.step for refresh in neutral.balancer.history] == [0, 2, 4]  # counted from the checkpoint
        assert [r.getMessage() for r in caplog.records if "balancing starts afresh" in r.getMessage()]
        callback = BalanceCallback(make_recipe())
        self.from_checkpoint(pl, tmp_path, None, callback)
        assert min(unit.multiplier for unit in callback.balancer.units) == 0.5

    @pytest.mark.parametrize("tolerance", [0.0, 0.2])
    def test_a_balanced_checkpoint_resumes_a_plain_run(self, pl, tmp_path, make_recipe, tolerance):
        neutral = BalanceCallback(make_recipe(assignment=NEUTRAL, tolerance=tolerance))
        plain = states_of(fit(pl, tmp_path))
        assert same(plain, states_of(self.from_checkpoint(pl, tmp_path, neutral, None)))
        balanced = BalanceCallback(make_recipe(tolerance=tolerance))
        assert not same(plain, states_of(self.from_checkpoint(pl, tmp_path, balanced, None)))


PLAIN = {
    "optimizer": lambda optimizer: optimizer,
    "list": lambda optimizer: [optimizer],
    "tuple": lambda optimizer: (optimizer,),
    "dictionary": lambda optimizer: {"optimizer": optimizer},
}
SCHEDULED = {
    "two lists": lambda o, s: ([o], [s]),
    "two lists with a dictionary": lambda o, s: ([o], [{"scheduler": s, "interval": "epoch"}]),
    "dictionary": lambda o, s: {"optimizer": o, "lr_scheduler": s},
    "list of dictionaries": lambda o, s: [{"optimizer": o, "lr_scheduler": {"scheduler": s}}],
}


class TestConfigureOptimizers:
    @staticmethod
    def rates(folder, recipe, configure) -> set[float]:
        """The rates of the groups after two epochs."""
        callback = BalanceCallback(recipe)
        fit(importlib.import_module("lightning.pytorch"), folder, callback, configure=configure)
        groups = callback.balancer.optimizer.param_groups
        assert len(groups) == 1
        return {group["lr"] for group in groups}

    @pytest.mark.parametrize("form", PLAIN)
    def test_configure_optimizers_may_return_any_form_without_scheduler(self, tmp_path, make_recipe, form):
        configured = self.rates(tmp_path, make_recipe(), lambda p: PLAIN[form](torch.optim.SGD(p, lr=0.01)))
        assert configured == {0.01}

    @pytest.mark.parametrize("form", SCHEDULED)
    def test_configure_optimizers_may_return_any_form_with_scheduler(self, tmp_path, make_recipe, form):
        def configure(parameters):
            optimizer = torch.optim.SGD(parameters, lr=0.01)
            return SCHEDULED[form](optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))

        assert self.rates(tmp_path, make_recipe(), configure) == {0.01 * 0.5**2}

    @pytest.mark.parametrize("number", [0, 2])
    def test_several_optimizers_are_refused(self, pl, tmp_path, make_recipe, number):
        def configure(parameters):
            parameters = list(parameters)
            return [torch.optim.SGD([p], lr=0.1) for p in parameters[:number]] or None

        with pytest.raises(tb.errors.BalanceError, match=rf"exactly one optimizer.*returned {number}"):
            fit(pl, tmp_path, BalanceCallback(make_recipe()), configure=configure)

    @pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
    def test_configure_optimizers_is_restored_after_fit(self, pl, tmp_path, make_recipe, own):
        module = make_module(pl)
        if own:
            module.configure_optimizers = given = module.configure_optimizers
        trainer = make_trainer(pl, tmp_path, BalanceCallback(make_recipe()), max_steps=1)
        trainer.fit(module, loader())
        assert vars(module).get("configure_optimizers") is (given if own else None)

    def test_a_second_fit_gets_a_second_balancer_also_after_an_error(self, pl, tmp_path, make_recipe):
        module = make_module(pl)
        callback = BalanceCallback(make_recipe())

        class Trouble(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                raise RuntimeError("no luck")

        with pytest.raises(RuntimeError, match="no luck"):
            make_trainer(pl, tmp_path, callback, Trouble()).fit(module, loader())
        assert "configure_optimizers" not in vars(module)
        make_trainer(pl, tmp_path, callback, max_steps=1).fit(module, loader())
        first = callback.balancer
        make_trainer(pl, tmp_path, callback, max_steps=1).fit(module, loader())
        assert callback.balancer is not first
        assert [refresh.step for refresh in callback.balancer.history] == [0]

    def test_a_second_fit_may_return_the_same_optimizer(self, pl, tmp_path, make_recipe):
        kept = []

        def configure(parameters):
            kept.append(kept[0] if kept else torch.optim.AdamW(parameters, lr=1e-2))
            return kept[0]

        module, callback = make_module(pl, configure), BalanceCallback(make_recipe())
        for _ in range(2):
            make_trainer(pl, tmp_path, callback, max_steps=1).fit(module, loader())
        assert callback.balancer.optimizer is kept[0]
        assert [refresh.step for refresh in callback.balancer.history] == [0]


class TestLogging:
    def test_every_refresh_reaches_the_loggers(self, pl, tmp_path, make_recipe):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        seen: list[tb.balance.Refresh] = []
        callback = BalanceCallback(make_recipe(), on_refresh=[seen.append])
        logger = pl.loggers.TensorBoardLogger(tmp_path, name=None, version="")
        fit(pl, tmp_path, callback, max_epochs=1, logger=logger)
        events = EventAccumulator(str(tmp_path)).Reload()
        assert [(e.step, e.value) for e in events.Scalars("alpha_imbalance")] == [
            (refresh.step, pytest.approx(refresh.imbalance)) for refresh in callback.balancer.history
        ]
        assert [e.value for e in events.Scalars("multiplier_max")] == [1.5] * 3
        assert [e.step for e in events.Scalars("loss")] == list(range(6))
        assert seen == callback.balancer.history

    @pytest.mark.parametrize("scheduler", [True, False])
    def test_the_monitor_lists_the_scheduled_rate_as_without_balancing(self, pl, tmp_path, make_recipe, scheduler):
        monitor = pl.callbacks.LearningRateMonitor("step", log_weight_decay=True)
        callback = BalanceCallback(make_recipe())
        configure = None if scheduler else lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)
        logger = pl.loggers.CSVLogger(tmp_path)
        fit(pl, tmp_path, callback, monitor, max_epochs=1, logger=logger, configure=configure)
        assert [name for name in monitor.lrs if monitor.lrs[name]] == ["lr-AdamW"]
        assert all(rates[0] == 1e-2 for rates in monitor.lrs.values() if rates)


class TestBadInput:
    def test_a_recipe_function_instead_of_a_recipe_is_refused(self):
        with pytest.raises(tb.errors.BalanceError, match=r"got the function llr"):
            BalanceCallback(tb.recipes.llr)

    def test_a_recipe_in_epochs_is_refused_for_a_loader_without_length(self, pl, tmp_path, make_recipe):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(torch.randn(8, 24))

        trainer = make_trainer(pl, tmp_path, BalanceCallback(make_recipe(every=EPOCHS)), max_steps=2)
        with pytest.raises(tb.errors.BalanceError, match="counts in epochs"):
            trainer.fit(make_module(pl), loader(Stream()))
        callback = BalanceCallback(make_recipe())
        make_trainer(pl, tmp_path, callback, max_steps=2).fit(make_module(pl), loader(Stream()))
        assert len(callback.balancer.history) == 1

    def test_a_recipe_in_epochs_is_refused_where_their_number_of_steps_changes(self, pl, tmp_path, make_recipe):
        scheduler = pl.callbacks.GradientAccumulationScheduler
        with pytest.raises(tb.errors.BalanceError, match="counts in epochs, but GradientAccumulationScheduler"):
            fit(pl, tmp_path, BalanceCallback(make_recipe(every=EPOCHS)), scheduler({1: 4}))
        callback = BalanceCallback(make_recipe(every=EPOCHS))
        fit(pl, tmp_path, callback, scheduler({0: 2}))
        assert [refresh.step for refresh in callback.balancer.history] == [0, 1, 2, 3, 4, 5]  # epochs of 3 steps

    @pytest.mark.parametrize(("name", "message"), [("FSDPStrategy", "FSDP1"), ("DeepSpeedStrategy", "DeepSpeed")])
    def test_strategies_that_hide_parameters_are_refused(self, pl, make_recipe, name, message):
        strategy = getattr(pl.strategies, name)
        trainer = type("Stub", (), {"strategy": object.__new__(strategy)})()
        module = make_module(pl)
        with pytest.raises(tb.errors.BalanceError, match=rf"{message}.*fully_shard"):
            BalanceCallback(make_recipe()).setup(trainer, module, "fit")
        assert "configure_optimizers" not in vars(module)
