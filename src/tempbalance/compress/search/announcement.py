"""What a search takes, before it starts: time from a measured forward pass, and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tempbalance._progress import show_line
from tempbalance.compress.search.evolution import SearchSettings, tokens_per_generation
from tempbalance.compress.search.memory import available_memory, copies_fit
from tempbalance.errors import AllocationError

__all__ = ["announcement", "states_of"]

_MINUTES = 90  # seconds that are shown as minutes
_HOURS = 90 * 60


def announcement(
    model: nn.Module, settings: SearchSettings, measured: int, weights: int, states: int, progress: bool
) -> Callable[[float, int, int], None]:
    """Return a function that shows the time and memory of a search, and refuses one that does not fit.

    Args:
        model: The model.
        settings: Settings.
        measured: Number of allocations that are measured on the whole text beside the generations.
        weights: Number of weights that have levels.
        states: Bytes of hidden states.
        progress: Whether they are shown (on a terminal only).

    Returns:
        A function of the seconds that a token takes, the number of tokens, and the bytes for log-probabilities.
    """

    def announce(seconds: float, tokens: int, log_probs: int) -> None:
        """Show a line, or raise an AllocationError."""
        parameter, needed = next(model.parameters()), log_probs + states
        free, copies = available_memory(parameter.device), weights * parameter.element_size()
        if free is not None and needed > free:
            raise AllocationError(
                f"the search needs {_size(needed)} of memory beside the model, of which {_size(free)} are available: "
                "use fewer tokens (SearchSettings.tokens), or fewer or shorter sequences (--samples, --length)"
            )
        kept = copies_fit(copies, parameter.device)
        run = measured * tokens + settings.generations * tokens_per_generation(settings, tokens)
        show_line(
            f"search of {settings.generations} generations on {tokens:,} tokens: at most {_duration(seconds * run)}, "
            f"{_size(needed + kept * copies)} of memory beside the model"
            + ("" if free is None else f" ({_size(free)} available)")
            + ("" if kept else "; weights are changed block by block"),
            progress,
        )

    return announce


def states_of(model: nn.Module, sequences: Sequence[Tensor]) -> int:
    """Return the bytes of the hidden states of sequences before and after a block, as far as they are known."""
    hidden = getattr(getattr(model, "config", None), "hidden_size", None)
    width = hidden if isinstance(hidden, int) else 0
    return 2 * sum(map(len, sequences)) * width * next(model.parameters()).element_size()


def _duration(seconds: float) -> str:
    if seconds < _MINUTES:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _HOURS else f"{seconds / 3600:.1f} h"


def _size(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 else f"{max(1, round(bytes_ / 2**20))} MiB"
