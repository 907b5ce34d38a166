from .bench import draw_bench as draw_bench
from .content import Example as Example
from .content import RunReport as RunReport
from .content import WeightHistogram as WeightHistogram
from .overlays import overlay as overlay
from .overlays import uncertainty_map as uncertainty_map
from .page import render_report as render_report
from .page import write_report as write_report
from .pictures import draw_hero as draw_hero
from .search import draw_search as draw_search
from .sweep import draw_sweep as draw_sweep

__all__ = [
    "Example",
    "RunReport",
    "WeightHistogram",
    "draw_bench",
    "draw_hero",
    "draw_search",
    "draw_sweep",
    "overlay",
    "render_report",
    "uncertainty_map",
    "write_report",
]
