"""The picture of a search for bits: what each learner's bits cost alone, and size against accuracy of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d2ed2q.files import atomic_path

__all__ = ["draw_search", "pareto_front"]

# Okabe and Ito's colours, told apart with any kind of colour vision; the markers tell them apart in print.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY = "#767676"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (bytes, accuracy) those that no other one beats in both, in rising order."""
    front: list[tuple[float, float]] = []
    for size, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((size, accuracy))
    return front


def draw_search(result: Mapping[str, Any], path: Path) -> None:
    """Draws loss by bits of each learner alone (left), and accuracy by size of whole ensembles (right).

    Args:
        result: of :func:`~d2ed2q.recipes.search_bits.search_bits`.
        path: PNG file to write.

    Raises:
        StorageError: the file could not be written.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
        alone = [point for point in result["points"] if point["kind"] == "alone"]
        if alone:
            left, right = figure.subplots(1, 2)
            _alone(left, result, alone)
        else:
            right = figure.subplots()
        _whole(right, result)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def _alone(axes: Any, result: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    for index, name in enumerate(result["learners"]):
        own = sorted((p["bits"][index], p["loss"]) for p in points if p["bits"][index] is not None)
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        label = "meta learner" if index == 0 else name.replace("base_", "base learner ")
        axes.plot(*zip(*own, strict=True), color=color, marker=marker, markersize=6, label=label)
    axes.axhline(result["tolerance"], color=_GREY, linestyle="--", linewidth=1.2, label="tolerance")
    axes.set(xlabel="bits of one learner, all others in full precision", ylabel=f"points of {_metric(result)} lost")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("each learner alone", loc="left", fontsize=11)
    axes.legend(frameon=False)


def _whole(axes: Any, result: Mapping[str, Any]) -> None:
    metric = result["metric"]
    whole = [point for point in result["points"] if point["kind"] in ("uniform", "joint")]
    for index, codebook in enumerate(dict.fromkeys(point["codebook"] for point in whole)):
        own = sorted(
            (p["bytes"] / 1e6, p[metric], p["bits"][0])
            for p in whole
            if p["codebook"] == codebook and p["kind"] == "uniform"
        )
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        label = f"{codebook}, same bits for all"
        axes.plot([p[0] for p in own], [p[1] for p in own], ":", color=color, marker=marker, markersize=6, label=label)
        if index == 0:
            for size, accuracy, bits in own:
                axes.annotate(str(bits), (size, accuracy), xytext=(4, 5), textcoords="offset points", fontsize=9)
    joint = [(p["bytes"] / 1e6, p[metric]) for p in whole if p["kind"] == "joint"]
    if joint:
        style = {"color": _GREY, "linestyle": "none", "marker": "x", "markersize": 6}
        axes.plot(*zip(*joint, strict=True), label="bits for each learner", **style)
    front = pareto_front([(p["bytes"] / 1e6, p[metric]) for p in whole])
    axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=1.2, label="Pareto front", zorder=1)
    chosen = result["chosen"]
    if chosen is not None:
        bits = " ".join(str(b) for b in chosen["bits"])
        # Where it was checked on more images than the others were measured on, its score there is none of this plot's.
        same = ("codebook", "bits")
        (accuracy,) = (p[metric] for p in whole if all(p[key] == chosen[key] for key in same))
        size = chosen["bytes"] / 1e6
        axes.plot([size], [accuracy], "*", color="black", markersize=17, label=f"chosen: {bits}", zorder=3)
    reference = result["full_precision"][metric]
    axes.axhline(reference, color=_GREY, linewidth=1.2, label="full precision")
    axes.axhline(reference - result["tolerance"] / 100, color=_GREY, linestyle="--", linewidth=1.2, label="tolerance")
    axes.set(xlabel="MB of all weights, by entropy", ylabel=f"{_metric(result)} on validation images")
    axes.set_title("whole ensemble, before retraining", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _metric(result: Mapping[str, Any]) -> str:
    return "Dice" if result["metric"] == "dice" else "AUC"
