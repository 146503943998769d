"""Moving averages (EMA) of weights that are stored beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tempbalance.layers.weights import Candidate

__all__ = ["AVERAGE", "find_averages", "is_average", "skip_averages"]

# A component of a name, or a key: ``ema``, ``model_ema``, ``ema_model``, ``swa_model``, ...
AVERAGE = re.compile(r"((?P<before>.*)_)?(ema|swa|shadow|averaged)(_(?P<after>.*))?", re.IGNORECASE)
_MODELS = ("", "model", "net", "network", "online_model")  # names of a whole model, any of which may be averaged
_REASON = "a moving average of "


def is_average(reason: str | None) -> bool:
    """Return whether a weight is skipped because it is an average of another."""
    return reason is not None and reason.startswith(_REASON)


def find_averages(candidates: Iterable[Candidate]) -> frozenset[str]:
    """Return the names of the averages, such as ``net_ema``, among the results of ``skip_averages``."""
    return frozenset(_front(candidate.name) for candidate in candidates if is_average(candidate.role.reason))


def _front(name: str) -> str:
    """Return the name of an average that may contain a tensor; empty without one."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts[:-1]) if AVERAGE.fullmatch(part)), -1)
    return ".".join(parts[: place + 1])


def skip_averages(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return all candidates of a model, with a reason for the averages that are beside the model or a part of it.

    Averages are the weights under a name such as ``net_ema``, if all of them have the names and shapes of weights under
    ``net``. Names are without wrappers.

    Example:
        >>> from tempbalance.layers import find_weights
        >>> import torch
        >>> find_weights({"net.fc.weight": torch.ones(2, 2), "net_ema.fc.weight": torch.ones(2, 2)})[1][0].reason
        'a moving average of net.fc.weight: to analyse it, pass a state dict of the averages alone'
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if front := _front(candidate.name):
            groups.setdefault(front, []).append(candidate)
    by_name = {candidate.name.replace(".", ""): candidate for candidate in candidates}  # LDM's averages have no dots
    reasons = {}
    for front, copies in groups.items():
        for model in _averaged(front):
            names = [f"{model}{copy.name.removeprefix(front)}".replace(".", "") for copy in copies]
            originals = [by_name.get(name) for name in names]
            pairs = [(c.name, o.name) for c, o in zip(copies, originals, strict=True) if o and o.shape == c.shape]
            if len(pairs) == len(copies):
                reasons.update(dict(pairs))
                break
    alone = ": to analyse it, pass a state dict of the averages alone"
    return [c.skipped(f"{_REASON}{reasons[c.name]}{alone}") if c.name in reasons else c for c in candidates]


def _averaged(front: str) -> list[str]:
    """Return the names of what is averaged under a name: ``net`` for ``net_ema``, any model for ``ema_model``."""
    outer, dot, average = front.rpartition(".")
    match = AVERAGE.fullmatch(average)
    own = "_".join(filter(None, (match["before"], match["after"]))) if match else average
    return [f"{outer}{dot}{name}" for name in (own, *(_MODELS if own in _MODELS else ()))]
