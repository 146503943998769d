"""Baselines to compare balancing with: custom methods for the task files of ``experiments/``."""

from baselines.base import Baseline, Batch, Joined, Training, outputs_of
from baselines.classifier_alignment import ClassifierAlignment
from baselines.ensemble_decay import EnsembleDecay
from baselines.few_sample import FewSample
from baselines.gradient_noise import GradientNoise
from baselines.lora import Lora
from baselines.muon import Muon
from baselines.probe import LPFT, Constant, Probe
from baselines.ps_kd import SelfDistillation
from baselines.snr import SpectralNorm
from baselines.spd import SPD
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
    "constant": Constant,
    "probe": Probe,
    "lp_ft": LPFT,
    "few_sample": FewSample,
    "spd": SPD,
}
