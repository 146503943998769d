"""Weight-space ensembles of the model before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tempbalance.balance import Balancer, Every, recipes
from tempbalance.layers import parameter_names
from tempbalance.study.methods.hooks import Batch, Training, TrainingMethod, check_range, linear_layers, trained

__all__ = ["WiseFT"]


@dataclass
class WiseFT(TrainingMethod):
    """Interpolate between the weights before and after training: ``W0 + coefficient * (W - W0)``.

    *When:* fine-tuned on little or biased data, and tested on other data; it costs nothing. The last linear layer is
    kept as trained, because it was random before.

    With ``strength`` each layer has its own coefficient, ``min(1, coefficient * multiplier)``, with the multipliers of
    Model Balancing (``TB_Sigmoid``) by the alphas of the fine-tuned layers: smaller for layers with a small alpha. This
    is balancing after training; no paper describes it. Weights without an alpha (embeddings, norms) keep
    ``coefficient``.

    ``smoothing`` is the amount of label smoothing in training, against overconfidence.

    BANG adds the smoothing. Deviations: WiSE-FT interpolates a zero-shot head, here the head is new; buffers, such as
    running means, are kept as trained; of BANG only smoothing, no Mixup. With LoRA write ``wise_ft+lora``, so that the
    merged weights are interpolated, not the factors.

    Attributes:
        coefficient: 0 for the weights before, 1 for those after fine-tuning; 0.5 in the paper without tuning.
        strength: Strength of ``TB_Sigmoid``; 0 for the same coefficient everywhere.
        smoothing: Part of the target that is spread evenly over all classes.
    """

    source = "WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903), BANG (Lin et al. 2024, arXiv 2309.17230)"
    needs = ("labels", "pretrained")

    coefficient: float = 0.5
    strength: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("coefficient", "smoothing"):
            check_range(name, getattr(self, name), 1)
        check_range("strength", self.strength)

    def requirements(self) -> set[str]:
        """Without smoothing neither labels nor the loss are needed."""
        return super().requirements() - (set() if self.smoothing else {"labels", "loss"})

    def prepare(self, model: nn.Module, training: Training) -> nn.Module:
        """Copy the weights."""
        self._before = {name: parameter.detach().clone() for name, parameter in trained(model).items()}
        return model

    def loss(self, model: nn.Module, batch: Batch, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the loss with smoothed labels."""
        if not self.smoothing:
            return loss
        return (1 - self.smoothing) * loss - self.smoothing * outputs.log_softmax(-1).mean()

    @torch.no_grad()
    def finish(self, model: nn.Module, batches: Sequence[Batch]) -> nn.Module:
        """Interpolate."""
        parameters = dict(model.named_parameters())
        _, head = linear_layers(model)
        multipliers = self._multipliers(model) if self.strength else {}
        for name, before in self._before.items():
            if not name.startswith(f"{head}."):
                multiplier = multipliers.get(id(parameters[name]), 1.0)
                parameters[name].copy_(before.lerp(parameters[name], min(1.0, self.coefficient * multiplier)))
        return model

    def _multipliers(self, model: nn.Module) -> dict[int, float]:
        """The multiplier of each parameter that has one."""
        recipe = replace(recipes.model_balancing(strength=self.strength), unit="layer", every=Every(steps=1))
        model.requires_grad_(True)  # after LoRA the weights that it was merged into do not, and would be passed over
        units = Balancer(torch.optim.SGD(model.parameters()), model, recipe).refresh().units
        parameters = parameter_names(model)
        return {id(parameters[name]): unit.multiplier for unit in units for name in unit.parameters}
