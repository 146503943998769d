"""Training in pieces of a few minutes: the state of an interrupted trial is saved, and the next piece resumes it.

    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    for step in piece.steps(f"{method.name} {lr} {seed}", total, state, method):
        ...  # a training step that depends on the step, the state and the global generators of torch only

The next piece continues with the same numbers, on a CPU bit for bit: the balancer's state is in the optimizer's, and
the generators of torch are saved as well.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tempbalance._files import write_atomically
from tempbalance.study import Method

SAVED_EVERY = 120.0  # seconds, in case the process is killed
NEXT_SEED = 2**24  # beyond every number of steps


def generator(seed: int, place: int) -> torch.Generator:
    """The generator of an epoch or a step of a trial, so that a resumed one draws the same."""
    return torch.Generator().manual_seed(seed * NEXT_SEED + place)


class Pause(BaseException):
    """The time is over and the state is saved. It is no Exception, which a study would record as a failed trial."""


class Record(dict[str, Any]):
    """Values that are saved and resumed with the rest."""

    def state_dict(self) -> dict[str, Any]:
        """Return the values."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the values."""
        self.update(state)


@dataclass
class Piece:
    """A part of the training of a study. Each process that trains has one state to save, that of its trial.

    Attributes:
        folder: Where states are saved; None to train without pauses.
        seconds: Length of the piece.
        most_steps: Number of steps after which to pause; for the rehearsal.
        device: Where to train.
        spent: Seconds of training of the last trial, in all pieces.
    """

    folder: Path | None = None
    seconds: float = math.inf
    most_steps: float = math.inf
    device: str = "cpu"
    spent: float = 0.0
    _began: float = field(default_factory=time.monotonic)
    _saved: Path | None = None

    def file(self, trial: str) -> Path | None:
        """Where the state of a trial is saved."""
        return self.folder and self.folder / f"{hashlib.sha256(trial.encode()).hexdigest()[:12]}.pt"

    def steps(self, trial: str, total: int, state: Mapping[str, Any], method: Method) -> Iterator[int]:
        """Yield the steps of a trial from where it was interrupted.

        Args:
            trial: Its method, learning rate and seed.
            total: Number of steps.
            state: What has a ``state_dict``.
            method: The method, with its balancer.

        Yields:
            The number of the step, from 0.

        Raises:
            Pause: The piece is over.
        """
        first, before = self._restore(trial, state, method)
        began = saved = time.monotonic()
        for step in range(first, total):
            yield step
            self.most_steps -= 1
            now = time.monotonic()
            self.spent = before + now - began
            is_over = now - self._began > self.seconds or self.most_steps <= 0
            if self.folder is not None and step + 1 < total and (is_over or now - saved > SAVED_EVERY):
                self._save(trial, step + 1, state, method)
                saved = time.monotonic()
                if is_over:
                    raise Pause(f"{trial}: {step + 1} of {total} steps")

    def _save(self, trial: str, step: int, state: Mapping[str, Any], method: Method) -> None:
        file = self.file(trial)
        assert file is not None
        content = {
            "step": step,
            "spent": self.spent,
            "state": {name: part.state_dict() for name, part in state.items()},
            "history": [balancer.history for balancer in method.balancers],
            "generator": torch.get_rng_state(),
            "generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())
        if self._saved not in {None, file}:  # of the trial before, which is finished
            self._saved.unlink(missing_ok=True)
        self._saved = file

    def _restore(self, trial: str, state: Mapping[str, Any], method: Method) -> tuple[int, float]:
        """Restore the state if it is of this trial; return its step and seconds."""
        self.spent = 0.0
        file = self.file(trial)
        if file is None or not file.exists():
            return 0, 0.0
        self._saved = file
        saved = torch.load(file, map_location="cpu", weights_only=False)  # our own file, with classes of history
        for name, part in state.items():
            part.load_state_dict(saved["state"][name])
        for balancer, history in zip(method.balancers, saved["history"], strict=True):
            balancer.history[:] = history
        torch.set_rng_state(saved["generator"])
        if saved["generators"]:
            torch.cuda.set_rng_state_all(saved["generators"])
        return saved["step"], saved["spent"]
