"""Progressive freezing, after linear probing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tempbalance.layers import find_depth_groups, find_weights, parameter_names
from tempbalance.study.methods.hooks import Training, check_range
from tempbalance.study.methods.probe import LPFT

__all__ = ["ProgressiveFreezing"]


@dataclass
class ProgressiveFreezing(LPFT):
    """Start from a linear probe, train all layers, and freeze them one after the other, from the input to the head.

    Early layers of a pre-trained network are the most general and need the fewest changes. *When:* fine-tuning on few
    data, such as radiographs.

    Ours, after linear probing then fine-tuning (Kumar et al.) and FreezeOut (Brock et al.). The deepest of the n groups
    by depth below the head (``tempbalance.layers.find_depth_groups``: embeddings, blocks or layers) is frozen
    after ``first`` of the training, the others evenly until its end; the head is always trained. Deviations from
    FreezeOut: the rate is that of the task, without a cosine of its own for each layer.

    Attributes:
        c: As of ``LPFT``.
        first: Share of the training before the first layers are frozen.
    """

    source = "after LP-FT (Kumar et al., arXiv 2202.10054) and FreezeOut (Brock et al. 2017, arXiv 1706.04983)"

    first: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("first", self.first, 1)

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Find the groups of layers."""
        parameters = parameter_names(model)
        groups = find_depth_groups(model, find_weights(model)[0])[1:]
        self._groups = [[parameters[name] for name in group.parameters] for group in reversed(groups)]
        total = training.epochs * training.batches
        self._steps = -round(self.first * total)  # negative before the first are frozen
        self._rest = total + self._steps
        return model

    def before_step(self, model: nn.Module) -> None:
        """Drop the gradients of frozen layers: an optimizer leaves a parameter without a gradient as it is."""
        step = self._steps
        self._steps += 1
        if step < 0:
            return
        for group in self._groups[: step * len(self._groups) // self._rest + 1]:
            for parameter in group:
                parameter.grad = None
