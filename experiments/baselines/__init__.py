"""Baselines to compare balancing with: custom methods for the task files of ``experiments/``."""

from baselines.base import Baseline, Batch, Joined, Training, outputs_of
from baselines.classifier_alignment import ClassifierAlignment
from baselines.ensemble_decay import EnsembleDecay
from baselines.gradient_noise import GradientNoise
from baselines.lora import Lora
from baselines.muon import Muon
from baselines.ps_kd import SelfDistillation
from baselines.snr import SpectralNorm
from baselines.svfit import SVFit
from baselines.wise_ft import WiseFT

__all__ = ["METHODS", "Baseline", "Batch", "Joined", "Muon", "Training", "outputs_of"]

METHODS = {
    "snr": SpectralNorm,
    "gradient_noise": GradientNoise,
    "ps_kd": SelfDistillation,
    "wise_ft": WiseFT,
    "ensemble_decay": EnsembleDecay,
    "classifier_alignment": ClassifierAlignment,
    "lora": Lora,
    "svfit": SVFit,
    "muon": Muon,
}
