"""What people see: tables on the terminal, and HTML pages in one file. Nothing below imports this."""

from __future__ import annotations

from tempbalance.report.analysis_page import render_html as render_analysis

__all__ = ["render_analysis"]
