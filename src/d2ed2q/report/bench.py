"""The picture of a bench: accuracy against latency, size as area."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from d2ed2q.files import atomic_path
from d2ed2q.limits import cores_in_words
from d2ed2q.report.names import FLOAT_NETWORK

__all__ = ["draw_bench", "logarithmic"]

_COLORS = {"openvino": "#0068b5", "onnxruntime": "#7a5195", "torch": "#d1495b"}
_LARGEST_AREA = 2600.0  # points²
_SMALLEST_AREA = 30.0
_WIDE = 500  # times the least of an axis: then there is no room for 2 and 5


def logarithmic(axes: Axes) -> None:
    """Makes the axis from left to right logarithmic; 1, 2 and 5 of every decade are written out, of many decades 1."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < _WIDE * low else NullFormatter())


def draw_bench(result: Mapping[str, Any], path: Path) -> None:
    """Draws one disc for each network and engine: time from left to right, Dice upwards, bytes as area.

    No float network was scored: it is drawn as high as the ensemble's first base learner, in few bits.

    Args:
        result: of :func:`~d2ed2q.recipes.bench.bench`.
        path: PNG file to write.

    Raises:
        StorageError: the file could not be written.
    """
    accuracy = result["accuracy"]
    names = dict.fromkeys(row["network"] for row in result["rows"])
    height = {name: accuracy["learner_dice"] if name == FLOAT_NETWORK else accuracy["dice"][1] for name in names}
    largest = max(row["bytes"] for row in result["rows"])
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.5, 4.8), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        levels: dict[str, int] = {}
        for row in sorted(result["rows"], key=lambda row: row["median_seconds"]):
            milliseconds = row["median_seconds"] * 1e3
            whole = row["network"] != FLOAT_NETWORK
            axes.scatter(
                [milliseconds],
                [height[row["network"]]],
                s=max(_SMALLEST_AREA, _LARGEST_AREA * row["bytes"] / largest),
                color=_COLORS[row["engine"]],
                alpha=0.55 if whole else 0.25,
                edgecolor=_COLORS[row["engine"]],
                linewidth=1.5,
            )
            axes.plot([milliseconds], [height[row["network"]]], ".", color=_COLORS[row["engine"]], markersize=4)
            level = levels[row["network"]] = levels.get(row["network"], -1) + 1
            upper = height[row["network"]] == max(height.values())
            axes.annotate(
                f"{row['engine']}\n{milliseconds:.0f} ms, {row['bytes'] / 1e6:.2f} MB",
                (milliseconds, height[row["network"]]),
                xytext=(0, 34 + 28 * (level % 3)) if upper else (0, -52 - 28 * (level % 3)),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.7},
            )
        for network, dice in height.items():
            label = {"ensemble": "whole ensemble", FLOAT_NETWORK: "base learner 1, few-bit"}.get(network, network)
            axes.axhline(dice, color="#dddddd", linewidth=0.8, zorder=0)
            axes.annotate(label, (1.01, dice), xycoords=("axes fraction", "data"), va="center", color="#444444")
        logarithmic(axes)
        axes.margins(x=0.25, y=1.5)
        axes.set_xlabel("median latency of one pass, ms (logarithmic)")
        passes = f", mean of {result['passes']} passes" if result["passes"] > 1 else ""
        axes.set_ylabel(f"Dice on validation images{passes}")
        size = "×".join(map(str, reversed(result["size"])))
        axes.set_title(
            f"{result['backbone']}, {size}, {result['environment']['processor']}, "
            f"{cores_in_words(result['threads'])}; area is bytes on disk",
            loc="left",
            fontsize=10,
        )
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
