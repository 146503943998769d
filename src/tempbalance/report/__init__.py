"""Figures, tables on the terminal, and HTML pages in one file. Only ``demo`` and ``cli`` import this package."""

from __future__ import annotations

from tempbalance.report.analysis_report import render_analysis, view_analysis
from tempbalance.report.comparison_report import render_comparison
from tempbalance.report.figures import plot
from tempbalance.report.track_report import render_track

__all__ = ["plot", "render_analysis", "render_comparison", "render_track", "view_analysis"]
