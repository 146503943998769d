"""Tables on the terminal, and HTML pages in one file. Only ``demo`` and ``cli`` import this package."""

from __future__ import annotations

from tempbalance.report.analysis_page import render_analysis

__all__ = ["render_analysis"]
