"""Tables on the terminal, and HTML pages in one file. No other package but ``cli`` imports this one."""

from __future__ import annotations

from tempbalance.report.analysis_page import render_analysis

__all__ = ["render_analysis"]
