"""From the figures of a finished run to one self-contained HTML page, and to pictures of single predictions."""

from __future__ import annotations

from d2ed2q.report.content import Example, RunReport, WeightHistogram
from d2ed2q.report.overlay import overlay, uncertainty_map
from d2ed2q.report.page import render_report, write_report
from d2ed2q.report.pictures import draw_hero

__all__ = [
    "Example",
    "RunReport",
    "WeightHistogram",
    "draw_hero",
    "overlay",
    "render_report",
    "uncertainty_map",
    "write_report",
]
