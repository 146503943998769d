"""Measure every weight matrix of a model or a checkpoint; compare two models; track a training run."""

from __future__ import annotations

from tempbalance.analysis.analyzer import Source, analyze
from tempbalance.analysis.comparison import compare
from tempbalance.analysis.comparison_result import Comparison
from tempbalance.analysis.layer_delta import LayerDelta
from tempbalance.analysis.result import Analysis
from tempbalance.analysis.track_result import Track, TrackedCheckpoint, TrackedLayer, TrackResume
from tempbalance.analysis.tracker import track

__all__ = [
    "Analysis",
    "Comparison",
    "LayerDelta",
    "Source",
    "Track",
    "TrackResume",
    "TrackedCheckpoint",
    "TrackedLayer",
]
__all__ += ["analyze", "compare", "track"]
