"""A live model whose weights can have many values each, without a change to the dense ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tempbalance.compress.pruning.targets import write_part
from tempbalance.compress.search.memory import copies_fit
from tempbalance.layers import Weight, parameter_names, plain_modules, unwrapped

__all__ = ["VariedModel"]

Make = Callable[[int, Tensor, int], Tensor]  # from a place, the dense weight and a level to the changed weight


class VariedModel:
    """A model in which each of some weights has a level: 0 for its dense values, or another one for changed values.

    A parameter whose weights have another level points to a changed copy; the dense values are not written to. If
    copies of all of them need more than half of the available memory, the copies of a block are made when the block is
    called, and dropped when it returns. Then the memory is bounded, because Transformers maps the dense values of a
    model on a CPU from its files, and the system drops what is not in use.

    Attributes:
        model: The model, with the levels that were set last.
        streamed: Whether the copies are made block by block.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Weight], make: Make) -> None:
        self.model = unwrapped(model)
        self._weights, self._make, self._levels = weights, make, [0] * len(weights)
        self._parameters = parameter_names(self.model)
        self._places: dict[str, list[int]] = {}
        for place, weight in enumerate(weights):
            self._places.setdefault(weight.parameter, []).append(place)
        self._dense = {name: self._parameters[name].data for name in self._places}
        size = sum(dense.nbytes for dense in self._dense.values())
        self.streamed = not copies_fit(size, next(iter(self._parameters.values())).device)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._blocks = self._stream() if self.streamed else {}

    @property
    def digest(self) -> str:
        """Hash of the dense weights."""
        found = hashlib.sha256()
        for place, weight in enumerate(self._weights):
            dense = self.dense(place)
            found.update(f"{weight.name} {dense.dtype}".encode())
            found.update(dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def dense(self, place: int) -> Tensor:
        """Return the dense values of a weight."""
        weight = self._weights[place]
        return weight.within(self._dense[weight.parameter])

    def set_levels(self, levels: Sequence[int]) -> None:
        """Give every weight its level; parameters that do not change are not touched."""
        pairs = zip(self._weights, self._levels, levels, strict=True)
        changed = {weight.parameter for weight, before, level in pairs if before != level}
        self._levels = [*levels]
        self._change([name for name in changed if name not in self._blocks])

    def restore(self) -> None:
        """Restore the dense weights."""
        self.set_levels([0] * len(self._weights))

    def close(self) -> None:
        """Restore the dense weights for good."""
        for handle in self._handles:
            handle.remove()
        self._drop([*self._places])

    @torch.no_grad()
    def _change(self, names: Sequence[str]) -> None:
        """Point parameters to copies with the levels of their weights, or to the dense values."""
        for name in names:
            values = dense = self._dense[name]
            for place in self._places[name]:
                weight, level = self._weights[place], self._levels[place]
                part = weight.within(dense)
                if level and part is dense:
                    values = self._make(place, part, level)
                elif level:
                    values = dense.clone() if values is dense else values
                    write_part(values, weight, self._make(place, part, level))
            self._parameters[name].data = values

    def _drop(self, names: Sequence[str]) -> None:
        """Point parameters to the dense values."""
        for name in names:
            self._parameters[name].data = self._dense[name]

    def _stream(self) -> dict[str, str]:
        """Change parameters when their block is called; return the blocks of those that are used in one block only."""
        modules, plain = dict(self.model.named_modules()), plain_modules(self.model)
        users: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            users.setdefault(id(parameter), []).append(name)
        blocks = {}
        for name, (first, *_) in self._places.items():
            block, names = self._weights[first].block, users[id(self._parameters[name])]
            whole = block in modules and plain.get(block or "") is modules[block or ""]  # not inside a wrapper
            if block is not None and whole and all(each.startswith(f"{block}.") for each in names):
                blocks[name] = block
        for block in dict.fromkeys(blocks.values()):
            own = [name for name, owner in blocks.items() if owner == block]
            module = modules[block]
            self._handles += [
                module.register_forward_pre_hook(lambda *_, own=own: self._change(own)),
                module.register_forward_hook(lambda *_, own=own: self._drop(own), always_call=True),
            ]
        return blocks
