"""Loggers for ``Balancer(on_refresh=[...])``: TensorBoard, Weights & Biases, MLflow.

Each is called with every ``Refresh`` on rank 0, and writes its scalars at the number of optimizer steps taken so far.
Tags have three sections, which dashboards show separately: ``tempbalance/`` contains the summary,
``tempbalance_alpha/`` and ``tempbalance_multiplier/`` one value per unit. Units without an alpha have no alpha value.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import islice
from statistics import fmean
from typing import Any

from tempbalance.balance import Refresh
from tempbalance.errors import ArgumentTypeError, IntegrationError, require_extra

__all__ = ["MLflowLogger", "TensorBoardLogger", "WandbLogger", "scalars", "summary"]

_SUMMARY, _ALPHA, _MULTIPLIER = "tempbalance", "tempbalance_alpha", "tempbalance_multiplier"
_STEP = f"{_SUMMARY}/step"
_MLFLOW_BATCH = 1000  # the most metrics that MLflow takes in one call


def scalars(refresh: Refresh, *, per_unit: bool = True) -> dict[str, float]:
    """Return the scalars that a logger writes for a refresh.

    Args:
        refresh: The refresh.
        per_unit: Whether to include alpha and multiplier of every unit.

    Returns:
        Finite numbers by tag, for the imbalance, minimum, mean and maximum of alpha and multiplier, the number of
        measured weights, and the time in seconds.

    Example:
        >>> from tempbalance.balance import UnitState
        >>> units = [UnitState(name="0", alpha=2.0, multiplier=0.5), UnitState(name="1", alpha=4.0, multiplier=1.5)]
        >>> values = scalars(Refresh(step=0, units=units, measured=2, seconds=0.1))
        >>> values["tempbalance/alpha_mean"], values["tempbalance_multiplier/1"]
        (3.0, 1.5)
    """
    alphas = {unit.name: unit.alpha for unit in refresh.units if math.isfinite(unit.alpha)}
    multipliers = {unit.name: unit.multiplier for unit in refresh.units}
    values = {f"{_SUMMARY}/measured": float(refresh.measured), f"{_SUMMARY}/seconds": refresh.seconds}
    if alphas:
        values[f"{_SUMMARY}/imbalance"] = refresh.imbalance
    for name, found in (("alpha", alphas.values()), ("multiplier", multipliers.values())):
        if found:
            values |= {
                f"{_SUMMARY}/{name}_min": min(found),
                f"{_SUMMARY}/{name}_mean": fmean(found),
                f"{_SUMMARY}/{name}_max": max(found),
            }
    if per_unit:
        values |= {f"{_ALPHA}/{unit}": alpha for unit, alpha in alphas.items()}
        values |= {f"{_MULTIPLIER}/{unit}": multiplier for unit, multiplier in multipliers.items()}
    return values


def summary(refresh: Refresh) -> dict[str, float]:
    """Return the three numbers that the trainers log with the loss.

    Args:
        refresh: The refresh.

    Returns:
        ``alpha_imbalance`` (missing if no unit has an alpha), ``multiplier_min`` and ``multiplier_max``.

    Example:
        >>> from tempbalance.balance import UnitState
        >>> units = [UnitState(name="0", alpha=2.0, multiplier=0.5), UnitState(name="1", alpha=4.0, multiplier=1.5)]
        >>> summary(Refresh(step=0, units=units, measured=2, seconds=0.1))
        {'alpha_imbalance': 1.0, 'multiplier_min': 0.5, 'multiplier_max': 1.5}
    """
    found = scalars(refresh, per_unit=False)
    names = {"alpha_imbalance": "imbalance", "multiplier_min": "multiplier_min", "multiplier_max": "multiplier_max"}
    return {name: found[f"{_SUMMARY}/{tag}"] for name, tag in names.items() if f"{_SUMMARY}/{tag}" in found}


class _Logger(ABC):
    """Converts a refresh to scalars; subclasses write them."""

    def __init__(self, per_unit: bool) -> None:
        self._per_unit = per_unit

    def __call__(self, refresh: Refresh) -> None:
        self._write(scalars(refresh, per_unit=self._per_unit), refresh.step)

    @abstractmethod
    def _write(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars by tag, at a number of optimizer steps."""


class TensorBoardLogger(_Logger):
    """Writes every refresh to TensorBoard.

    Example:
        >>> import tempfile
        >>> logger = TensorBoardLogger(tempfile.mkdtemp())
        >>> logger(Refresh(step=0, units=[], measured=0, seconds=0.1))
        >>> logger.close()
    """

    def __init__(self, writer: Any, *, per_unit: bool = True) -> None:
        """Use a writer, or create one.

        Args:
            writer: A ``SummaryWriter`` (``logger.experiment`` in Lightning), or the folder of a new one.
            per_unit: Whether to write alpha and multiplier of every unit.

        Raises:
            MissingExtraError: A folder is given and tensorboard is not installed.
            ArgumentTypeError: Neither a writer nor a folder is given.
        """
        super().__init__(per_unit)
        self._owns = isinstance(writer, (str, os.PathLike))
        if self._owns:
            with require_extra("tensorboard", "TensorBoard is not installed"):
                from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(writer)
        elif not hasattr(writer, "add_scalar"):
            raise ArgumentTypeError(f"expected a SummaryWriter or the folder for one, got a {type(writer).__name__}")
        self._writer = writer

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        if self._owns:
            self._writer.flush()

    def close(self) -> None:
        """Close the writer if it was created here."""
        if self._owns:
            self._writer.close()


class WandbLogger(_Logger):
    """Writes every refresh to a run of Weights & Biases.

    The x-axis of the charts is ``tempbalance/step``, the optimizer steps. Values are added to the current row of the
    run without advancing it, so loops that pass ``step=`` to ``run.log`` keep their rows. A new row is started
    only if nothing else was logged since the last refresh.
    """

    def __init__(self, run: Any = None, *, per_unit: bool = True) -> None:
        """Use a run.

        Args:
            run: The result of ``wandb.init`` (``logger.experiment`` in Lightning); by default the active run.
            per_unit: Whether to write alpha and multiplier of every unit.

        Raises:
            MissingExtraError: No run is given and wandb is not installed.
            IntegrationError: No run is given and none is active.
            ArgumentTypeError: ``run`` is not a run.
        """
        super().__init__(per_unit)
        if run is None:
            with require_extra("wandb", "Weights & Biases is not installed"):
                import wandb
            run = wandb.run
            if run is None:
                raise IntegrationError(
                    "there is no active run of Weights & Biases: call wandb.init() first, or pass run="
                )
        if not hasattr(run, "define_metric"):
            raise ArgumentTypeError(f"expected a run, which wandb.init() returns, got a {type(run).__name__}")
        self._run = run
        self._row: int | None = None
        run.define_metric(_STEP)
        for section in (_SUMMARY, _ALPHA, _MULTIPLIER):
            run.define_metric(f"{section}/*", step_metric=_STEP)

    def _write(self, values: Mapping[str, float], step: int) -> None:
        if self._run.step == self._row:  # the row of the last refresh, which would be overwritten
            self._run.log({})
        self._run.log({**values, _STEP: step}, commit=False)
        self._row = self._run.step


class MLflowLogger(_Logger):
    """Writes every refresh to a run of MLflow.

    Characters that MLflow does not allow in names (other than letters, digits, ``_ - . : /`` and spaces) become ``_``.
    """

    def __init__(self, run_id: str | None = None, *, per_unit: bool = True) -> None:
        """Use a run.

        Args:
            run_id: Id of the run; by default that of the active run.
            per_unit: Whether to write alpha and multiplier of every unit.

        Raises:
            MissingExtraError: mlflow is not installed.
            IntegrationError: No id is given and no run is active.
        """
        super().__init__(per_unit)
        with require_extra("mlflow", "MLflow is not installed"):
            import mlflow
        if run_id is None:
            active = mlflow.active_run()
            if active is None:
                raise IntegrationError(
                    "there is no active run of MLflow: call mlflow.start_run() first, or pass run_id="
                )
            run_id = active.info.run_id
        self._mlflow = mlflow
        self._run_id = run_id

    def _write(self, values: Mapping[str, float], step: int) -> None:
        left = iter((re.sub(r"[^\w\-.:/ ]", "_", tag), value) for tag, value in values.items())
        while batch := dict(islice(left, _MLFLOW_BATCH)):
            self._mlflow.log_metrics(batch, step=step, run_id=self._run_id)
