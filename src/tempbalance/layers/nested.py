"""Find the state dict of a model among what a training script saved: numbers, optimizer states, other models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from tempbalance.errors import CheckpointError
from tempbalance.layers.averages import AVERAGE
from tempbalance.spectra.matrices import MATRIX_NDIM

__all__ = ["FoundStateDict", "find_state_dict"]

# Keys that usually lead to the model, the preferred ones first.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "ema")
_NO_MODEL = re.compile(
    r".*(optim|sched|scaler|rng|random|callback|loop|loss|criterion|metric|args|config|hparam|hyper|history).*",
    re.IGNORECASE,
)
_PARAMETER = re.compile(r".+\..+|weight|bias")
_DEPTH = 8
_MOST_REPEATED = 100_000  # entries of mappings that are found more than once


class FoundStateDict(NamedTuple):
    """A state dict in nested mappings.

    Attributes:
        key: The keys that lead to it, joined by dots; empty for the outermost mapping.
        tensors: Its tensors by name.
        others: Keys of other models in the same mappings.
    """

    key: str
    tensors: Mapping[str, Any]
    others: tuple[str, ...] = ()

    @property
    def message(self) -> str | None:
        """Which state dict was chosen, if there are others."""
        chosen = repr(self.key) if self.key else "the outermost state dict"
        others = ", ".join(map(repr, self.others))
        return f"{chosen} is read; it also contains {others}: choose with key= or --key" if others else None


def _is_matrix(tensor: Any) -> bool:
    try:
        return bool(tensor.ndim >= MATRIX_NDIM)
    except Exception:  # whatever a subclass of a tensor raises
        return False


class _Candidate(NamedTuple):
    """A mapping that contains tensors, and what speaks for it."""

    path: tuple[str, ...]
    tensors: dict[str, Any]

    @property
    def matrices(self) -> int:
        """Number of tensors with two axes or more."""
        return sum(map(_is_matrix, self.tensors.values()))

    @property
    def is_model(self) -> bool:
        """Whether it has a matrix, and names as parameters have them."""
        return self.matrices > 0 and any(_PARAMETER.fullmatch(name) for name in self.tensors)

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Whether it is a model, whether it is the model that was trained, and how usual its key is."""
        trained = not any(AVERAGE.fullmatch(key) for key in self.path)
        usual = min((_KEYS.index(key) for key in self.path if key in _KEYS), default=len(_KEYS) + bool(self.path))
        return self.is_model, trained, -usual


def find_state_dict(loaded: Mapping[Any, Any], key: str | None = None, kind: type = Tensor) -> FoundStateDict:
    """Find the state dict of the model.

    Mappings that look like one (names of parameters, matrices) are preferred to others, usual keys (``model``,
    ``state_dict``) to others, and the trained model to an average of it (EMA).

    Args:
        loaded: What was saved: a state dict, or mappings of state dicts and anything else.
        key: The keys that lead to it, joined by dots, if it is not to be searched.
        kind: The class of tensors, or of what stands for one.

    Returns:
        The state dict.

    Raises:
        CheckpointError: There is none, none under that key, or several that are equally likely.

    Example:
        >>> import torch
        >>> saved = {"epoch": 3, "loss": torch.ones(()), "model": {"fc.weight": torch.zeros(4, 4)}}
        >>> find_state_dict(saved).key
        'model'
    """
    search = _Search(kind)
    if key is not None:
        return FoundStateDict(key, search.at(loaded, key))
    candidates = list(search.candidates(loaded))
    if not candidates:
        keys = ", ".join(str(key) for key in list(loaded)[:8]) or "none"
        modules = [str(key) for key, value in loaded.items() if isinstance(value, nn.Module)]
        advice = f"pass the module under {modules[0]!r}" if modules else "save and pass model.state_dict()"
        raise CheckpointError(f"no state dict found in it (a {type(loaded).__name__} with keys {keys}): {advice}")
    best = max(candidates, key=lambda candidate: (candidate.rank, candidate.matrices))
    others = [c for c in candidates if c is not best and c.is_model]
    if best.path and any(other.rank == best.rank for other in others):
        raise CheckpointError(f"it contains several models ({_listed([best, *others])}): choose one with key= or --key")
    return FoundStateDict(".".join(best.path), best.tensors, tuple(".".join(c.path) for c in others if c.path))


def _listed(candidates: Sequence[_Candidate]) -> str:
    return ", ".join(sorted(".".join(candidate.path) for candidate in candidates)[:8])


def _flat(parts: Sequence[_Candidate], depth: int) -> dict[str, Any]:
    return {".".join([*part.path[depth:], name]): value for part in parts for name, value in part.tensors.items()}


class _Search:
    """Looks for state dicts in mappings, which may contain themselves, or the same mapping many times."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._seen: set[int] = set()
        self._repeated = 0

    def candidates(
        self, mapping: Mapping[Any, Any], path: tuple[str, ...] = (), above: frozenset[int] = frozenset()
    ) -> Iterator[_Candidate]:
        """Yield the mappings with tensors; ``above`` contains the mappings around this one."""
        if id(mapping) in above or len(above) > _DEPTH or "param_groups" in mapping:  # an optimizer
            return
        self._repeated += len(mapping) * (id(mapping) in self._seen)
        if self._repeated > _MOST_REPEATED:
            raise CheckpointError("its dictionaries contain the same dictionary too often: save model.state_dict()")
        self._seen.add(id(mapping))
        tensors = {str(name): value for name, value in mapping.items() if isinstance(value, self._kind)}
        if tensors:
            yield _Candidate(path, tensors)
        inner: list[_Candidate] = []
        for key, value in mapping.items():
            if isinstance(key, str) and isinstance(value, Mapping) and not _NO_MODEL.fullmatch(key):
                inner += self.candidates(value, (*path, key), above | {id(mapping)})
        if path and path[-1] in _KEYS and not tensors and sum(candidate.is_model for candidate in inner) > 1:
            yield _Candidate(path, _flat(inner, len(path)))  # one model, saved part by part
        else:
            yield from inner

    def at(self, loaded: Mapping[Any, Any], key: str) -> dict[str, Any]:
        """Return the tensors under a key; keys of mappings may contain dots themselves."""
        matches = [(loaded, key)]
        while matches:
            mapping, rest = matches.pop()
            if not rest:
                parts = list(self.candidates(mapping))
                own = next((part.tensors for part in parts if not part.path), None)
                found = own or _flat(parts, 0)
                if found:
                    return found
                continue
            for name, value in mapping.items():
                inside = str(name)
                if isinstance(value, Mapping) and (rest == inside or rest.startswith(f"{inside}.")):
                    matches.append((value, rest[len(inside) + 1 :]))
        known = [c for c in self.candidates(loaded) if c.path]
        hint = f"it has {_listed(known)}" if known else "it has no nested state dict"
        raise CheckpointError(f"no tensors under the key {key!r}; {hint}")
