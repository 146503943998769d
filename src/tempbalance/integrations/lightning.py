"""A Lightning callback that balances training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tempbalance.balance import Balancer, Recipe, Refresh
from tempbalance.balance.optimizers import DEEPSPEED, FSDP1
from tempbalance.errors import BalanceError, require_extra
from tempbalance.integrations.loggers import summary
from tempbalance.integrations.trainer_arguments import check_epoch, to_recipe

with require_extra("lightning", "Lightning is not installed"):
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

__all__ = ["BalanceCallback"]


class BalanceCallback(Callback):  # type: ignore[misc]
    """Balances the optimizer that ``configure_optimizers`` returns: ``Trainer(callbacks=[BalanceCallback(recipe)])``.

    During ``fit`` it wraps the module's ``configure_optimizers`` and creates a ``Balancer``. Alphas and multipliers are
    in the optimizer state of every checkpoint, so a run resumed by ``trainer.fit(model, ckpt_path=...)`` is
    bit-identical to an uninterrupted one; a checkpoint without them can be resumed too. Every refresh writes
    ``alpha_imbalance``, ``multiplier_min`` and ``multiplier_max`` to the trainer's loggers.

    Attributes:
        recipe: The balancing method.
        balancer: The balancer; None until ``fit`` has configured the optimizer.

    Example:
        >>> import torch, tempbalance as tb
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        ...     def training_step(self, batch):
        ...         return self.layers(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters(), lr=1e-3)
        >>> callback = BalanceCallback(tb.Recipe(name="mine", assignment=tb.assign.Linear(0.5, 1.5)))
        >>> trainer = Trainer(max_steps=1, accelerator="cpu", callbacks=[callback], barebones=True)
        >>> trainer.fit(Net(), torch.utils.data.DataLoader(torch.randn(8, 32)))
        >>> sorted(unit.multiplier for unit in callback.balancer.units)
        [0.5, 1.5]
    """

    def __init__(
        self,
        recipe: Recipe | str,
        exact: bool = False,
        on_refresh: Iterable[Callable[[Refresh], object]] = (),
        delay: int = 0,
        dtype: str | None = None,
    ) -> None:
        """Create the callback.

        Args:
            recipe: The method; see ``tempbalance.recipes``. Or its name as in ``tempbalance study``, such as
                ``"model_balancing:strength=1.0"``. A recipe that counts in epochs gets the trainer's optimizer steps
                per epoch at the first refresh; the loader must have a length.
            exact: Whether to measure every weight at every refresh, even if the recipe has a tolerance.
            on_refresh: Functions called with each ``Refresh`` on rank 0, such as the loggers in
                ``tempbalance.integrations``.
            delay: Optimizer steps from an asynchronous refresh to its effect; see ``Balancer``.
            dtype: ``"float32"`` measures in float32; see ``Balancer``.

        Raises:
            BalanceError: ``recipe`` is not a recipe.
            StudyError: There is no recipe of that name.
        """
        super().__init__()
        self.recipe = to_recipe(recipe)
        self.balancer: Balancer | None = None
        self._options: dict[str, Any] = {"exact": exact, "delay": delay, "dtype": dtype}
        self._on_refresh = tuple(on_refresh)
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wrap ``configure_optimizers`` of the module; DeepSpeed and FSDP1 raise an error."""
        self._restore()
        if stage != "fit":
            return
        strategies = {cls.__name__ for cls in type(trainer.strategy).__mro__}
        if "DeepSpeedStrategy" in strategies:
            raise BalanceError(DEEPSPEED)
        if "FSDPStrategy" in strategies:
            raise BalanceError(f"{FSDP1} (in Lightning: ModelParallelStrategy)")
        own = pl_module.__dict__.get("configure_optimizers")  # if the user has set a function on the instance
        configure = pl_module.configure_optimizers

        @functools.wraps(configure)
        def configure_and_balance(*args: Any, **kwargs: Any) -> Any:
            configured = configure(*args, **kwargs)
            self._balance(trainer, pl_module, configured)
            return configured

        def undo() -> None:
            if own is None:
                del pl_module.configure_optimizers
            else:
                pl_module.configure_optimizers = own

        pl_module.configure_optimizers = configure_and_balance
        self._undo = undo

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore ``configure_optimizers`` of the module. The balancer stays, for ``save_checkpoint``."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore it after an exception, when Lightning does not call ``teardown``."""
        self._restore()

    def _restore(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None

    def _balance(self, trainer: Any, pl_module: Any, configured: Any) -> None:
        optimizers = _optimizers(configured)
        if len(optimizers) != 1:
            raise BalanceError(
                f"BalanceCallback balances exactly one optimizer, but configure_optimizers returned {len(optimizers)}: "
                "build a tempbalance.Balancer for each inside configure_optimizers instead"
            )

        def log(refresh: Refresh) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(summary(refresh), step=refresh.step)

        if self.balancer is not None:  # of a fit before, perhaps of the same optimizer
            self.balancer.remove()
        self.balancer = Balancer(
            optimizers[0],
            pl_module,
            self.recipe,
            steps_per_epoch=lambda: _steps_per_epoch(trainer),  # asked at the first refresh
            on_refresh=(log, *self._on_refresh),
            **self._options,
        )


def _steps_per_epoch(trainer: Any) -> int:
    """Return the optimizer steps in an epoch."""
    schedules = [getattr(each, "scheduling", {}) for each in trainer.callbacks]  # of GradientAccumulationScheduler
    if any(len({*schedule.values()}) > 1 for schedule in schedules):
        return check_epoch(None, "GradientAccumulationScheduler changes their number of steps")
    if trainer.train_dataloader is None:  # gradual unfreezing asks before the sanity check of the validation
        trainer.fit_loop.setup_data()  # as trainer.estimated_stepping_batches does
    batches = trainer.num_training_batches
    return check_epoch(None if math.isinf(batches) else max(1, math.ceil(batches / trainer.accumulate_grad_batches)))


def _optimizers(configured: Any) -> list[Any]:
    """Return the optimizers in a result of ``configure_optimizers``, which has one of several forms."""
    if configured is None:
        return []
    if isinstance(configured, Mapping):
        return [configured["optimizer"]]
    if not isinstance(configured, (list, tuple)):
        return [configured]
    if len(configured) == 2 and isinstance(configured[0], list):  # noqa: PLR2004  optimizers, schedulers
        return list(configured[0])
    return [optimizer for each in configured for optimizer in _optimizers(each)]
