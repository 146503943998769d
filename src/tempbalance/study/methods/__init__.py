"""Training methods that are not recipes, for every task that calls their hooks: one class each.

``TRAINING_METHODS`` has them by the name that a study uses. A task of your own may add more: see
:class:`~tempbalance.study.TrainingMethod`.

Example:
    >>> import tempbalance as tb
    >>> tb.study.Method("sam:rho=0.1+ps_kd").custom
    (SAM(rho=0.1), SelfDistillation(strength=0.8))
"""

from __future__ import annotations

from collections.abc import Mapping

from tempbalance.study.methods.boosting import Boosting
from tempbalance.study.methods.classifier_alignment import ClassifierAlignment
from tempbalance.study.methods.data_diet import DataDiet
from tempbalance.study.methods.ensemble_decay import EnsembleDecay
from tempbalance.study.methods.few_sample import FewSample
from tempbalance.study.methods.gradient_noise import GradientNoise
from tempbalance.study.methods.guidance import Guidance
from tempbalance.study.methods.hooks import TrainingMethod
from tempbalance.study.methods.levi import LEVI
from tempbalance.study.methods.lora import Lora
from tempbalance.study.methods.muon import Muon
from tempbalance.study.methods.pego import PEGO
from tempbalance.study.methods.probe import LPFT, Constant, Probe
from tempbalance.study.methods.progressive_freezing import ProgressiveFreezing
from tempbalance.study.methods.projection_head import ProjectionHead
from tempbalance.study.methods.ps_kd import SelfDistillation
from tempbalance.study.methods.sara import SaRA
from tempbalance.study.methods.sharpness import GLAD, SAM
from tempbalance.study.methods.snr import SpectralNorm
from tempbalance.study.methods.spd import SPD
from tempbalance.study.methods.spectrum import Spectrum
from tempbalance.study.methods.svfit import SVFit
from tempbalance.study.methods.wise_ft import WiseFT

__all__ = [
    "GLAD",
    "LEVI",
    "LPFT",
    "PEGO",
    "SAM",
    "SPD",
    "TRAINING_METHODS",
    "Boosting",
    "ClassifierAlignment",
    "Constant",
    "DataDiet",
    "EnsembleDecay",
    "FewSample",
    "GradientNoise",
    "Guidance",
    "Lora",
    "Muon",
    "Probe",
    "ProgressiveFreezing",
    "ProjectionHead",
    "SVFit",
    "SaRA",
    "SelfDistillation",
    "SpectralNorm",
    "Spectrum",
    "WiseFT",
]

TRAINING_METHODS: Mapping[str, type[TrainingMethod]] = {
    "snr": SpectralNorm,
    "gradient_noise": GradientNoise,
    "ps_kd": SelfDistillation,
    "wise_ft": WiseFT,
    "ensemble_decay": EnsembleDecay,
    "classifier_alignment": ClassifierAlignment,
    "lora": Lora,
    "svfit": SVFit,
    "muon": Muon,
    "constant": Constant,
    "probe": Probe,
    "lp_ft": LPFT,
    "few_sample": FewSample,
    "spd": SPD,
    "pego": PEGO,
    "sara": SaRA,
    "spectrum": Spectrum,
    "progressive_freezing": ProgressiveFreezing,
    "projection_head": ProjectionHead,
    "data_diet": DataDiet,
    "sam": SAM,
    "glad": GLAD,
    "levi": LEVI,
    "guidance": Guidance,
    "boosting": Boosting,
}
