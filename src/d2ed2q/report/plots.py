"""The plots of a report page, each as one inline SVG element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2ed2q.report.content import Curves, WeightHistogram
from d2ed2q.report.names import FIGURE_NAMES, finite, learner_name, phase_name
from d2ed2q.report.svg import ACCENT, BAND, CARD, CONTRAST, GRID, INK, MUTED, SECOND, THIRD, inline_svg, plain_style

__all__ = ["loss_plot", "reliability_plot", "roc_plot", "spread_plot", "validation_plot", "weight_plot"]

Rows = Sequence[Mapping[str, Any]]
_POINTS = 300  # more than these on one curve cannot be seen


class Band(NamedTuple):
    """One training phase on the epoch axis."""

    phase: str
    begin: float
    """Epochs done before it."""
    end: float
    """Epochs done after it."""
    frozen: float | None
    """Share of the weights that are quantized and frozen during it; None where the log does not say."""


def phase_bands(history: Rows) -> list[Band]:
    """Finds the phases of a run in its log, in the order of their first row."""
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    frozen: dict[str, float | None] = {}
    for row in history:
        epoch, phase = finite(row.get("epoch")), row.get("phase")
        if epoch is None or not isinstance(phase, str):
            continue
        is_start = row.get("kind") == "phase"
        begin.setdefault(phase, epoch if is_start else epoch - 1)
        end[phase] = max(end.get(phase, epoch), epoch)
        # Nothing is quantized in the first phase, so its row need not say so.
        frozen.setdefault(phase, 0.0 if phase == "full_precision" else None)
        if is_start and finite(row.get("frozen_fraction")) is not None:
            frozen[phase] = finite(row["frozen_fraction"])
    return [Band(phase, begin[phase], end[phase], frozen[phase]) for phase in begin if end[phase] > begin[phase]]


def series(history: Rows, kind: str, name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one figure; rows where it is missing or not finite are left out."""
    points = [
        (epoch, value)
        for row in history
        if row.get("kind") == kind
        and (epoch := finite(row.get("epoch"))) is not None
        and (value := finite(row.get(name))) is not None
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def loss_plot(history: Rows, name: str = "loss") -> str | None:
    """Training loss over all phases, with the quantized share of the weights below; None without training rows."""
    curves = [("total loss", "loss", ACCENT, "-"), ("segmentation part", "segmentation", CONTRAST, "--")]
    return _phased_plot(history, "train", curves, "loss", name, "Training loss over all epochs")


def validation_plot(history: Rows, name: str = "validation") -> str | None:
    """Validation Dice and AUC over all phases, with the quantized share below; None without validation rows."""
    curves = [("ROC-AUC", "auc", CONTRAST, "-"), ("Dice", "dice", ACCENT, "-")]
    return _phased_plot(history, "validation", curves, "validation", name, "Validation Dice and AUC over all epochs")


def _phased_plot(
    history: Rows, kind: str, curves: Sequence[tuple[str, str, str, str]], axis: str, name: str, description: str
) -> str | None:
    drawn = [(label, *series(history, kind, column), color, style) for label, column, color, style in curves]
    drawn = [curve for curve in drawn if curve[1]]
    if not drawn:
        return None
    bands = phase_bands(history)
    with plain_style():
        figure = _figure(5.2, 3.3)
        top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
        for label, epochs, values, color, style in drawn:
            marker = "o" if kind == "validation" and len(epochs) <= 60 else None
            top.plot(epochs, values, style, color=color, label=label, marker=marker, markersize=3)
        top.set_ylabel(axis)
        top.legend(loc="best", ncols=len(drawn))
        _shade(top, bands)
        steps = [band for band in bands if band.frozen is not None]
        if steps:
            edges = [band.begin for band in steps] + [steps[-1].end]
            shares = [100 * (band.frozen or 0.0) for band in steps]
            bottom.stairs(shares, edges, baseline=None, color=SECOND, linewidth=1.8)
        bottom.set_ylim(-8, 108)
        bottom.set_yticks([0, 50, 100])
        bottom.set_ylabel("frozen %")
        bottom.set_xlabel("epoch")
        for axes in (top, bottom):
            axes.margins(x=0)
        return inline_svg(figure, name, f"{description}, with the share of quantized weights below")


def _shade(axes: Any, bands: Sequence[Band]) -> None:
    """Shades every other phase and names each above the plot."""
    total = max((band.end for band in bands), default=0.0) - min((band.begin for band in bands), default=0.0)
    for index, band in enumerate(bands):
        if index % 2:
            axes.axvspan(band.begin, band.end, color=BAND, linewidth=0)
        wide = (band.end - band.begin) / total > 0.11
        text = _short(phase_name(band.phase))
        axes.text(
            (band.begin + band.end) / 2,
            1.02,
            text if wide else text.removeprefix("step "),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
            in_layout=False,
        )
    axes.set_title(" ")  # makes room for the names


def roc_plot(few: Curves | None, full: Curves | None, prediction: str | None, few_label: str) -> str | None:
    """ROC curves of every learner, the prediction's in front; None without any.

    Args:
        few: curves of the finished weights.
        full: curves of the full-precision weights.
        prediction: the learner whose output is the prediction.
        few_label: what the finished weights are called.
    """
    lines = _lines(few, full, prediction, few_label, "roc")
    if not lines:
        return None
    with plain_style():
        figure = _figure(4.6, 3.9)
        axes = figure.subplots()
        targets = [axes]
        if _reaches_corner(lines[-1]):
            inset = axes.inset_axes([0.43, 0.42, 0.53, 0.40], facecolor=CARD)
            inset.set(xlim=(0, 0.2), ylim=(0.8, 1.0), xticks=[0, 0.1, 0.2], yticks=[0.8, 0.9, 1.0])
            inset.tick_params(labelsize=8)
            inset.text(0.98, 0.04, "top left, enlarged", transform=inset.transAxes, ha="right", fontsize=8, color=MUTED)
            targets.append(inset)
        for target in targets:
            for line in lines:
                fpr, tpr = thin(line.x, line.y)
                target.plot(fpr, tpr, line.style, color=line.color, linewidth=line.width, label=line.label)
        axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
        axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), xlabel="false positive rate", ylabel="true positive rate")
        _legend(axes, "lower right")
        return inline_svg(figure, "roc", "Receiver operating characteristic of every learner")


def _reaches_corner(line: _Line) -> bool:
    """Whether an enlarged corner has something to show, and lies below the curve instead of on it."""
    return float(np.interp(0.2, line.x, line.y)) > 0.85


def reliability_plot(few: Curves | None, full: Curves | None, prediction: str | None, few_label: str) -> str | None:
    """Observed against predicted frequency, dots as large as the share of pixels in them; None without any.

    Args:
        few: curves of the finished weights.
        full: curves of the full-precision weights.
        prediction: the learner whose output is the prediction.
        few_label: what the finished weights are called.
    """
    lines = _lines(few, full, prediction, few_label, "reliability")
    if not lines:
        return None
    with plain_style():
        figure = _figure(4.6, 3.9)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], ":", color=MUTED, linewidth=1)
        axes.text(0.93, 0.9, "perfect", fontsize=8.5, color=MUTED, ha="right", rotation=40)
        for line in lines:
            axes.plot(line.x, line.y, line.style, color=line.color, linewidth=line.width, label=line.label)
            if line.share is not None:
                axes.scatter(line.x, line.y, s=12 + 260 * line.share, color=line.color, alpha=0.75, linewidths=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability", ylabel="observed frequency")
        _legend(axes, "upper left")
        return inline_svg(figure, "reliability", "Reliability diagram: observed against predicted frequency")


def risk_plot(few: Curves | None, full: Curves | None, prediction: str | None, few_label: str) -> str | None:
    """Error rate among the pixels that are kept, against their share, most confident first; None without any.

    Args:
        few: curves of the finished weights.
        full: curves of the full-precision weights.
        prediction: the learner whose output is the prediction.
        few_label: what the finished weights are called.
    """
    lines = _lines(few, full, prediction, few_label, "risk")
    if not lines:
        return None
    with plain_style():
        figure = _figure(4.6, 3.9)
        axes = figure.subplots()
        for line in lines:
            axes.plot(line.x, 100 * line.y, line.style, color=line.color, linewidth=line.width, label=line.label)
        axes.set(xlim=(-0.01, 1.01), xlabel="share of pixels kept", ylabel="wrong among them, %")
        axes.set_ylim(bottom=0)
        _legend(axes, "upper left")
        return inline_svg(figure, "risk", "Risk and coverage: errors among the most confident pixels")


class _Line(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    share: np.ndarray | None  # drawn as dots; of the prediction alone
    label: str | None
    color: str
    style: str
    width: float


def _lines(few: Curves | None, full: Curves | None, prediction: str | None, few_label: str, curve: str) -> list[_Line]:
    """The curves to draw, the least important first, so that the prediction lies on top."""
    few, full = few or {}, full or {}
    lines: list[_Line] = []
    colors = {"ensemble": SECOND, "meta": SECOND, "base_mean": THIRD}
    grouped = False
    for learner in sorted(few, key=lambda key: not key.startswith("base_")):
        data = _known(few[learner].get(curve))
        if data is None or learner == prediction:
            continue
        color = colors.get(learner, MUTED)
        label: str | None = _short(learner_name(learner))
        if color == MUTED:
            label, grouped = (None if grouped else "base learners"), True
        lines.append(_Line(data[0], data[1], None, label, color, "-", 1.0))
    front = [(full, "full precision", CONTRAST, "--"), (few, few_label, ACCENT, "-")]
    for source, weights, color, style in front:
        data = _known(source.get(prediction or "", {}).get(curve))
        if data is not None:
            share = data[2] if curve == "reliability" and source is few else None
            label = f"{_short(learner_name(prediction or ''))}, {weights}"
            lines.append(_Line(data[0], data[1], share, label, color, style, 2.0))
    return lines


def _known(data: Sequence[np.ndarray] | None) -> Sequence[np.ndarray] | None:
    """The points of a curve that are numbers; None where there are none, as with images without any foreground."""
    if data is None:
        return None
    finite_points = np.isfinite(data[0]) & np.isfinite(data[1])
    return [part[finite_points] for part in data] if finite_points.any() else None


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps at most 300 points of a curve, evenly along its length, both ends among them."""
    if len(x) <= _POINTS:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _POINTS)).clip(0, len(x) - 1))
    keep = np.unique(np.concatenate([[0], keep[:-1], [len(x) - 1]]))
    return x[keep], y[keep]


def weight_plot(weights: WeightHistogram, name: str) -> str:
    """Distribution of one layer's weights before (above) and after (below) quantization."""
    limit = float(max(np.abs(weights.before).max(), np.abs(weights.after).max())) or 1.0
    edges = np.linspace(-limit, limit, 128)  # an odd number of bins, so that zero has one of its own
    with plain_style():
        figure = _figure(3.6, 2.5)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, values, color, when in zip(
            panels, (weights.before, weights.after), (CONTRAST, ACCENT), ("before", "after"), strict=True
        ):
            share = 100 * np.histogram(values, edges)[0] / values.size
            axes.stairs(share, edges, fill=True, color=color)
            axes.text(0.015, 0.93, when, transform=axes.transAxes, va="top", color=INK, fontsize=9)
            axes.set_ylim(0, share.max() * 1.08)
            axes.locator_params(axis="y", nbins=3)
            axes.margins(x=0)
            axes.set_ylabel("%", rotation=0, labelpad=8)
        panels[1].set_xlabel("weight")
        return inline_svg(figure, name, f"Weights of {weights.name} before and after quantization")


def spread_plot(few: Sequence[Any], full: Sequence[Any], few_label: str, figure_name: str = "dice") -> str | None:
    """One figure of every image, in rising order, full precision beside few bits; None without any value.

    Args:
        few: of every image with the finished weights; None where undefined.
        full: of the same images with the full-precision weights, or empty.
        few_label: what the finished weights are called.
        figure_name: which figure it is.
    """
    known = [(value, index) for index, item in enumerate(few) if (value := finite(item)) is not None]
    if not known:
        return None
    order = [index for _, index in sorted(known)]
    with plain_style():
        figure = _figure(5.2, 2.6)
        axes = figure.subplots()
        ranks = np.arange(1, len(order) + 1)
        axes.plot(ranks, [few[index] for index in order], "o", color=ACCENT, markersize=5, label=few_label)
        beside = [(rank, value) for rank, index in enumerate(order, 1) if (value := _at(full, index)) is not None]
        if beside:
            ranks_full, values_full = zip(*beside, strict=True)
            style = {"color": CONTRAST, "fillstyle": "none", "markersize": 8}
            axes.plot(ranks_full, values_full, "o", label="full precision", **style)
        axes.axhline(float(np.median([value for value, _ in known])), color=GRID, linewidth=1.6, zorder=0)
        axes.set(xlabel="images, lowest first", ylabel=FIGURE_NAMES.get(figure_name, figure_name))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="best")
        return inline_svg(figure, "spread", f"{FIGURE_NAMES.get(figure_name, figure_name)} of every image")


def _at(values: Sequence[Any], index: int) -> float | None:
    return finite(values[index]) if index < len(values) else None


def _short(name: str) -> str:
    """A name that fits into a plot, however long it is."""
    return name if len(name) <= 30 else name[:29] + "…"


def _legend(axes: Any, place: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc=place)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # slow to import, and a prediction's overlay does not need it

    return Figure(figsize=(width, height), layout="constrained")
