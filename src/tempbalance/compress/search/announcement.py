"""What a search takes, before it starts: time from a measured forward pass, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tempbalance._progress import show_line
from tempbalance.compress.search.evolution import SearchSettings, tokens_per_generation
from tempbalance.compress.search.memory import available_memory, copies_fit
from tempbalance.errors import AllocationError

__all__ = ["Announcement"]

_MINUTES = 90  # seconds that are shown as minutes
_HOURS = 90 * 60


@dataclass(slots=True, kw_only=True)
class Announcement:
    """Shows the time and memory of a search before it starts, and refuses one that does not fit."""

    model: nn.Module
    settings: SearchSettings
    measured: int  # allocations that are measured on the whole text beside the generations
    weights: int  # that have levels
    calibration: Sequence[Tensor] = ()  # sequences that are run for OWL and the scores of the criterion
    criterion: str = "magnitude"
    progress: bool  # shows them, on a terminal only
    alone: tuple[int, bool] | None = None  # if no search follows: what is measured, and whether OWL is among it
    text: str = ""  # time and memory of a search

    def __call__(self, seconds: float, tokens: int, probs: int) -> None:
        """Show a line, from the seconds of a token, their number, and the bytes of probabilities; or raise."""
        parameter = next(self.model.parameters())
        needed = probs + self._hidden_entries() * parameter.element_size()
        free, copies = available_memory(parameter.device), self.weights * parameter.element_size()
        if free is not None and needed > free:
            raise AllocationError(
                f"measuring allocations needs {_size(needed)} of memory beside the model, of which {_size(free)} are "
                "available: use fewer tokens (SearchSettings.tokens), fewer or shorter sequences (--samples, "
                "--length), or an allocation that is not measured (--allocation owl --no-compare)"
            )
        kept = copies_fit(copies, parameter.device)
        before = self._calibrated(owl=True) + self.measured * tokens
        run = before + self.settings.generations * tokens_per_generation(self.settings, tokens)
        self.text = (
            f"search of {self.settings.generations} generations on {tokens:,} tokens: at most "
            f"{_duration(seconds * run)}, {_size(needed + kept * copies)} of memory beside the model"
            + ("" if free is None else f" ({_size(free)} available)")
            + ("" if kept else "; weights are changed block by block")
        )
        if self.alone is None:
            show_line(self.text, self.progress)
            return
        measured, owl = self.alone
        own = seconds * (self._calibrated(owl=owl) + measured * tokens)
        show_line(f"measuring simple allocations: about {_duration(own)}", self.progress)

    def _calibrated(self, *, owl: bool) -> int:
        """Return the tokens of three passes over the text for OWL's outliers, and three for Wanda's norms."""
        return 3 * (owl + (self.criterion != "magnitude")) * sum(map(len, self.calibration))

    def _hidden_entries(self) -> int:
        """Return the numbers in the hidden states before and after a block, as far as their width is known."""
        hidden = getattr(getattr(self.model, "config", None), "hidden_size", None)
        return 2 * sum(map(len, self.calibration)) * (hidden if isinstance(hidden, int) else 0)


def _duration(seconds: float) -> str:
    if seconds < _MINUTES:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _HOURS else f"{seconds / 3600:.1f} h"


def _size(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{max(1, round(bytes_ / 2**20))} MiB"
