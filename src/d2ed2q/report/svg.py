"""Plots as inline SVG that takes its colours from the page, so that it follows light, dark and print."""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["ACCENT", "BAND", "CARD", "CONTRAST", "GRID", "INK", "MUTED", "SECOND", "THIRD", "inline_svg", "plain_style"]

# matplotlib knows no CSS variables: it draws in these colours, which are replaced afterwards. No plot uses them else.
INK, MUTED, GRID, BAND = "#010203", "#010204", "#010205", "#010206"
ACCENT, CONTRAST, SECOND, THIRD, CARD = "#010207", "#010208", "#010209", "#01020a", "#01020b"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    BAND: "--band",
    ACCENT: "--accent",
    CONTRAST: "--contrast",
    SECOND: "--second",
    THIRD: "--third",
    CARD: "--card",
}

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "d2ed2q",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """Draws inside the block look the same whatever matplotlib settings the user has; those come back afterwards."""
    import matplotlib  # slow to import

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that matplotlib's own font lacks is drawn by the browser, with a font that has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def inline_svg(figure: Any, name: str, description: str) -> str:
    """Turns a matplotlib figure, drawn and saved inside :func:`plain_style`, into an ``<svg>`` element.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        name: unique within the page: prefix of all ids in the SVG, of letters, digits and hyphens.
        description: what a screen reader says of it; plain text, escaped here.

    Returns:
        str: the element, without XML declaration, metadata, namespaces or anything else that names another address.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'\bhref="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
