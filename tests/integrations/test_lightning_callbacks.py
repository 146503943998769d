"""Balancing beside Lightning's own callbacks, clipping, and runs that stop with an exception."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import tempbalance as tb

from .conftest import NEUTRAL, same, states_of

pl = pytest.importorskip("lightning.pytorch")

from tempbalance.integrations.lightning import BalanceCallback  # noqa: E402

from .test_lightning import fit, loader, make_module, make_trainer  # noqa: E402


def optimizer_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)["optimizer_states"][0]


class Stops:
    """Raises an exception in the training step of one batch, which Lightning runs inside ``optimizer.step``."""

    def __init__(self, module: Any, batch: int, exception: BaseException) -> None:
        step = module.training_step

        def training_step(batch_of_data: Any) -> Any:
            if module.trainer.fit_loop.epoch_loop.batch_idx == batch:
                raise exception
            return step(batch_of_data)

        module.training_step = training_step


@pytest.fixture
def _signals():
    """Lightning ignores SIGINT for the rest of the process after the first."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_signals")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning")
@pytest.mark.filterwarnings("ignore:..?fit.ckpt_path=:UserWarning")
class TestExceptions:
    BATCH = 4  # a refresh is due at this step, and was made when the exception is raised

    def interrupted(self, folder: Path, recipe: tb.Recipe | None, exception: BaseException) -> Path:
        """Train until the exception, and return the checkpoint that Lightning writes then."""
        module = make_module(pl)
        Stops(module, self.BATCH, exception)
        callbacks = [pl.callbacks.OnExceptionCheckpoint(folder), *([BalanceCallback(recipe)] if recipe else [])]
        trainer = make_trainer(pl, folder, *callbacks, enable_checkpointing=True)
        with pytest.raises(SystemExit if isinstance(exception, KeyboardInterrupt) else type(exception)):
            trainer.fit(module, loader(torch.ones(24, 24)))
        return folder / "on_exception.ckpt"

    def finished(self, folder: Path, *callbacks: Any, path: Path | None = None) -> Any:
        module = make_module(pl)
        make_trainer(pl, folder, *callbacks).fit(module, loader(torch.ones(24, 24)), ckpt_path=path)
        return module

    @pytest.mark.parametrize("exception", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
    def test_the_checkpoint_of_an_exception_has_the_scheduled_rate(self, tmp_path, make_recipe, exception):
        plain = optimizer_of(self.interrupted(tmp_path / "plain", None, exception))
        saved = optimizer_of(self.interrupted(tmp_path / "balanced", make_recipe(), exception))
        (group,), (expected,) = saved["param_groups"], plain["param_groups"]
        assert group.pop("tempbalance")
        assert group == expected

    @pytest.mark.parametrize("change", [{}, {"tolerance": 0.2}, {"ramp": 2}], ids=str)
    def test_a_run_resumed_after_an_exception_is_bit_identical(self, tmp_path, make_recipe, change):
        recipe = make_recipe(**change)
        path = self.interrupted(tmp_path, recipe, RuntimeError("out of memory"))
        callback, resumed = BalanceCallback(recipe), BalanceCallback(recipe)
        whole = self.finished(tmp_path, callback)
        assert same(states_of(whole), states_of(self.finished(tmp_path, resumed, path=path)))
        assert resumed.balancer.units == callback.balancer.units
        assert [refresh.step for refresh in resumed.balancer.history] == [4, 6, 8, 10]

    def test_a_neutral_run_resumed_after_an_exception_ends_in_the_bits_of_a_plain_one(self, tmp_path, make_recipe):
        neutral = make_recipe(assignment=NEUTRAL)
        path = self.interrupted(tmp_path, neutral, KeyboardInterrupt())
        resumed = self.finished(tmp_path, BalanceCallback(neutral), path=path)
        assert same(states_of(resumed), states_of(self.finished(tmp_path)))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipped_training_with_neutral_multipliers_changes_no_bit(tmp_path, make_recipe, algorithm):
    settings = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    plain = fit(pl, tmp_path, **settings)
    neutral = fit(pl, tmp_path, BalanceCallback(make_recipe(assignment=NEUTRAL)), **settings)
    assert same(states_of(plain), states_of(neutral))
    assert not same(states_of(plain), states_of(fit(pl, tmp_path)))  # it does clip


def averaging(name: str) -> Any:
    if name == "swa":
        return pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=2)
    return pl.callbacks.EMAWeightAveraging(decay=0.5)


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch:UserWarning")
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["swa", "ema"])
class TestWeightAveraging:
    """Both copy the module; SWA also replaces the scheduler during training."""

    def test_neutral_multipliers_change_no_bit(self, tmp_path, make_recipe, name, first):
        plain = fit(pl, tmp_path, averaging(name), max_epochs=3)
        callbacks = [BalanceCallback(make_recipe(assignment=NEUTRAL)), averaging(name)]
        neutral = fit(pl, tmp_path, *callbacks[:: 1 if first else -1], max_epochs=3)
        assert same(states_of(plain), states_of(neutral))

    def test_the_rates_of_the_replaced_schedule_are_multiplied(self, tmp_path, make_recipe, name, first):
        rates: list[tuple[float, set[float]]] = []

        class Note(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                optimizer = trainer.optimizers[0]
                optimizer.register_step_pre_hook(
                    lambda o, *_: rates.append((trainer.scheduled, {g["lr"] for g in o.param_groups}))
                )

            def on_train_batch_start(self, trainer, *_):
                trainer.scheduled = trainer.optimizers[0].param_groups[0]["lr"]

        callback = BalanceCallback(make_recipe())
        callbacks = [callback, averaging(name)]
        fit(pl, tmp_path, *callbacks[:: 1 if first else -1], Note(), max_epochs=3)
        assert len(rates) == 18
        assert all(min(found) == 0.5 * rate and max(found) == 1.5 * rate for rate, found in rates)
        assert (rates[-1][0] == pytest.approx(0.05)) == (name == "swa")


class TestFinetuning:
    """The backbone joins the optimizer in the second epoch, as a group of its own."""

    def module(self) -> Any:
        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                net = make_module(pl).net
                self.backbone, self.head = net[:2], net[2:]

            def training_step(self, batch):
                return self.head(self.backbone(batch)).square().mean()

            def configure_optimizers(self):
                optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-2)
                return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

        return Module()

    def fit(self, folder: Path, *callbacks: Any, epochs: int = 3, path: Path | None = None) -> Any:
        module = self.module()
        unfreezing = pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
        trainer = make_trainer(pl, folder, *callbacks, unfreezing, max_epochs=epochs)
        trainer.fit(module, loader(), ckpt_path=path)
        return module

    @pytest.mark.parametrize("every", [2, 4])
    def test_units_of_the_backbone_join_at_the_next_refresh(self, tmp_path, make_recipe, every):
        callback = BalanceCallback(make_recipe(every=tb.Every(steps=every)))
        self.fit(tmp_path, callback)
        units = [(refresh.step, len(refresh.units)) for refresh in callback.balancer.history]
        assert units == [(step, 2 if step < 6 else 3) for step in range(0, 18, every)]
        assert [unit.name for unit in callback.balancer.units] == [
            "backbone.0",
            "head.2",
            "head.4",
        ]  # slices of one network
        assert min(unit.multiplier for unit in callback.balancer.units) == 0.5
        assert len(callback.balancer.optimizer.param_groups) == 2

    def test_neutral_multipliers_change_no_bit(self, tmp_path, make_recipe):
        neutral = make_recipe(assignment=NEUTRAL)
        plain = self.fit(tmp_path)
        assert same(states_of(plain), states_of(self.fit(tmp_path, BalanceCallback(neutral))))

    def test_a_resumed_run_trains_what_lightning_trains(self, tmp_path, make_recipe):
        # Lightning itself leaves the backbone frozen when it resumes after its epoch.
        def halved(*callbacks: Any) -> tuple[Any, Path]:
            trainer = make_trainer(pl, tmp_path, *callbacks, max_epochs=2)
            unfreezing = pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
            trainer.callbacks.append(unfreezing)
            trainer.fit(self.module(), loader())
            trainer.save_checkpoint(tmp_path / "half.ckpt")
            return tmp_path / "half.ckpt"

        neutral = make_recipe(assignment=NEUTRAL)
        plain = self.fit(tmp_path, path=halved())
        callback = BalanceCallback(neutral)
        resumed = self.fit(tmp_path, callback, path=halved(BalanceCallback(neutral)))
        assert same(states_of(plain), states_of(resumed))
        assert [refresh.step for refresh in callback.balancer.history] == [12, 14, 16]
