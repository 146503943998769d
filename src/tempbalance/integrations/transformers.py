"""Balancing in the Hugging Face Trainer, and in trainers derived from it (TRL, ...)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from tempbalance.balance import Balancer, Recipe, Refresh
from tempbalance.balance.optimizers import DEEPSPEED, FSDP1, unwrap
from tempbalance.errors import BalanceError, require_extra
from tempbalance.integrations.loggers import summary
from tempbalance.integrations.trainer_arguments import check_epoch, to_recipe

with require_extra("transformers", "Transformers is not installed"):
    from transformers import Trainer
    from transformers.trainer_utils import has_length

__all__ = ["BalanceMixin", "BalancedTrainer", "balanced"]


class BalanceMixin:
    """Adds balancing to a trainer: ``class MyTrainer(BalanceMixin, TheirTrainer)``.

    The optimizer that the trainer creates, or is given, gets a ``Balancer``. Alphas and multipliers are in the
    ``optimizer.pt`` of every checkpoint, so a run with ``resume_from_checkpoint`` is bit-identical to an uninterrupted
    one. A checkpoint of a trainer without balancing can be resumed too; balancing then starts afresh. The first log of
    the loss after a refresh also contains ``alpha_imbalance``, ``multiplier_min`` and ``multiplier_max``, in every
    backend of ``report_to``.

    Attributes:
        recipe: The balancing method.
        balancer: The balancer; None until training starts.
    """

    def __init__(
        self,
        *args: Any,
        recipe: Recipe | str,
        exact: bool = False,
        delay: int = 0,
        dtype: str | None = None,
        on_refresh: Iterable[Callable[[Refresh], object]] = (),
        **kwargs: Any,
    ) -> None:
        """Build the trainer.

        Args:
            *args: Arguments of the trainer.
            recipe: The method; see ``tempbalance.recipes``. Or its name as in ``tempbalance study``, such as
                ``"model_balancing:strength=1.0"``. A recipe that counts in epochs gets the trainer's number of
                optimizer steps per epoch at the first refresh; the loader must have a length.
            exact: Whether to measure every weight at every refresh, even if the recipe has a tolerance.
            delay: Optimizer steps from an asynchronous refresh to its effect; see ``Balancer``.
            dtype: ``"float32"`` measures in float32; see ``Balancer``.
            on_refresh: Functions called with each ``Refresh`` on rank 0, such as the loggers in
                ``tempbalance.integrations``.
            **kwargs: Arguments of the trainer.

        Raises:
            BalanceError: ``recipe`` is not a recipe; or the trainer uses DeepSpeed or FSDP1, which cannot be balanced.
            StudyError: There is no recipe of that name.
        """
        self.recipe = to_recipe(recipe)
        self.balancer: Balancer | None = None
        self._options: dict[str, Any] = {"exact": exact, "delay": delay, "dtype": dtype}
        self._on_refresh = tuple(on_refresh)
        self._logged: Refresh | None = None
        self._epoch: int | None = None  # optimizer steps in an epoch; None if the loader has no length
        self._asked: int | None = None  # the same, as the balancer got it
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if getattr(trainer, "is_deepspeed_enabled", False):
            raise BalanceError(DEEPSPEED)
        if getattr(trainer, "is_fsdp_enabled", False):
            plugin = trainer.accelerator.state.fsdp_plugin
            if getattr(plugin, "fsdp_version", 1) == 1:
                raise BalanceError(f"{FSDP1} (fsdp_version 2 in the configuration of the trainer)")

    def set_initial_training_values(self, args: Any, dataloader: Any, *rest: Any) -> Any:
        """Compute the initial values as the trainer does, and keep the optimizer steps in an epoch."""
        values = super().set_initial_training_values(args, dataloader, *rest)  # type: ignore[misc]
        self._epoch = values[1] if has_length(dataloader) else None
        if self.balancer is not None and self._asked not in (None, self._epoch):
            self.balancer.remove()  # the next one counts in these epochs
            self.balancer = self._asked = None
        return values

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer as the trainer does, and balance it."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if self.balancer is not None:
            if self.balancer.optimizer is unwrap(optimizer):
                return optimizer
            self.balancer.remove()
        model = (*args, *kwargs.values(), None)[0]
        self.balancer = Balancer(
            optimizer,
            trainer.model if model is None else model,
            self.recipe,
            steps_per_epoch=self._steps_per_epoch,  # asked at the first refresh, when the loader is known
            on_refresh=self._on_refresh,
            **self._options,
        )
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does, and add a summary of the last refresh to the loss if it was not logged yet."""
        history = self.balancer.history if self.balancer is not None else []
        if "loss" in logs and history and history[-1] is not self._logged:
            self._logged = history[-1]
            logs = {**logs, **summary(history[-1])}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _steps_per_epoch(self) -> int:
        self._asked = check_epoch(self._epoch)
        return self._asked


class BalancedTrainer(BalanceMixin, Trainer):  # type: ignore[misc]
    """``transformers.Trainer`` with balancing: takes ``recipe=`` and all arguments of the Trainer.

    Example:
        >>> import tempfile, torch, tempbalance as tb
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=99, **size))
        >>> data = [{"input_ids": torch.arange(8) + i, "labels": i % 2} for i in range(16)]
        >>> args = TrainingArguments(tempfile.mkdtemp(), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True)
        >>> trainer = BalancedTrainer(model, args, train_dataset=data, recipe=tb.recipes.model_balancing())
        >>> result = trainer.train()
        {'train_runtime': ...}
        >>> [unit.name for unit in trainer.balancer.units]
        ['bert.encoder.layer.0', 'bert.encoder.layer.1']
    """


@functools.cache
def balanced(trainer_class: type) -> type:
    """Add balancing to a trainer class.

    Args:
        trainer_class: ``Seq2SeqTrainer``, ``SFTTrainer``, or any other subclass of ``transformers.Trainer``.

    Returns:
        A subclass that also takes ``recipe=``, ``exact=``, ``delay=``, ``dtype=`` and ``on_refresh=``; the same for
        each call.

    Raises:
        BalanceError: ``trainer_class`` is not a subclass of ``transformers.Trainer``.

    Example:
        >>> from transformers import Seq2SeqTrainer
        >>> balanced(Seq2SeqTrainer).__name__
        'BalancedSeq2SeqTrainer'
    """
    if not (isinstance(trainer_class, type) and issubclass(trainer_class, Trainer)):
        raise BalanceError(f"expected a subclass of transformers.Trainer, got {trainer_class!r}")
    if issubclass(trainer_class, BalanceMixin):
        return trainer_class
    if trainer_class is Trainer:
        return BalancedTrainer
    name = f"Balanced{trainer_class.__name__}"
    return type(name, (BalanceMixin, trainer_class), {"__doc__": f"``{trainer_class.__name__}`` with balancing."})
