"""Measure every weight matrix of a model or a checkpoint, and compare two measurements."""

from __future__ import annotations

from tempbalance.analysis.analyzer import Source, analyze
from tempbalance.analysis.comparison import compare
from tempbalance.analysis.comparison_result import Comparison, LayerDelta
from tempbalance.analysis.result import Analysis

__all__ = ["Analysis", "Comparison", "LayerDelta", "Source", "analyze", "compare"]
