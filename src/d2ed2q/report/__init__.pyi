from .bench import draw_bench as draw_bench
from .content import Example as Example
from .content import RunReport as RunReport
from .content import WeightHistogram as WeightHistogram
from .overlays import as_bytes as as_bytes
from .overlays import as_rgb as as_rgb
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
    "as_bytes",
    "as_rgb",
    "draw_bench",
    "draw_hero",
    "draw_search",
    "draw_sweep",
    "overlay",
    "render_report",
    "uncertainty_map",
    "write_report",
]
