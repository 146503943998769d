"""Strong weight decay and ensembles."""

from __future__ import annotations

from dataclasses import dataclass

from tempbalance.errors import check_integer
from tempbalance.study.methods.hooks import TrainingMethod, check_range

__all__ = ["EnsembleDecay"]


@dataclass
class EnsembleDecay(TrainingMethod):
    """Train several models with much stronger weight decay, and average their outputs.

    Strong decay reduces overfitting of repeated data, and the average reduces the variance. *When:* data are scarce and
    compute is not: training and inference cost ``members`` times as much.

    In the paper the best decay is 30 times the usual and logits are averaged. Deviations: fine-tuning, not
    pre-training; decay is towards 0 as there, and so reduces pre-trained weights. Members differ in the order of the
    data, in dropout and in the new head.

    Attributes:
        members: Number of models.
        decay: Factor on the task's weight decay.
    """

    source = "Kim et al. 2025, Pre-training under infinite compute (arXiv 2509.14786)"

    members: int = 4
    decay: float = 30.0

    def __post_init__(self) -> None:
        check_integer("members", self.members, 1)
        check_range("decay", self.decay)
