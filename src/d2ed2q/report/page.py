"""One finished run as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from d2ed2q.files import write_text
from d2ed2q.report import tables
from d2ed2q.report.content import Example, RunReport
from d2ed2q.report.names import NOT_MEASURED, number
from d2ed2q.report.overlays import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, colormap
from d2ed2q.report.pictures import example_panels
from d2ed2q.report.plots import (
    loss_plot,
    reliability_plot,
    risk_plot,
    roc_plot,
    spread_plot,
    validation_plot,
    weight_plot,
)

__all__ = ["render_report", "write_report"]


def write_report(path: Path, report: RunReport) -> Path:
    """Writes the page; a reader sees the old file or the whole new one, never a part.

    Args:
        path: the HTML file; its folder is made if needed.
        report: what it shows.

    Returns:
        Path: ``path``.

    Raises:
        StorageError: the file could not be written; what was there before is untouched.
    """
    write_text(path, render_report(report))
    return path


def render_report(report: RunReport) -> str:
    """Renders the page: the same report gives the same bytes.

    Args:
        report: what it shows; every text in it is escaped.

    Returns:
        str: HTML with its style, plots and pictures inline, and without scripts.
    """
    environment = Environment(
        loader=PackageLoader("d2ed2q.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(environment.loader.get_source(environment, "page.css")[0])  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        report=report,
        style=style,
        not_measured=NOT_MEASURED,
        few=tables.few_label(report),
        headline=tables.headline(report),
        accuracy=tables.learner_tables(report),
        classes=tables.class_table(report),
        objects=tables.object_table(report),
        doubt=tables.learner_tables(report, doubt=True),
        images=tables.image_rows(report),
        diversity=tables.diversity_figures(report),
        bars=tables.diversity_bars(report),
        examples=[_example(example) for example in report.examples],
        legend=_legend(),
        ramp=_ramp(),
        has_full=bool(report.evaluation.get("full_precision")),
        **_plots(report),
    )


def _plots(report: RunReport) -> dict[str, Any]:
    label = tables.few_label(report)
    curves = (
        report.curves.get("few_bit"),
        report.curves.get("full_precision"),
        report.evaluation.get("prediction"),
        label,
    )
    scope = tables.main_scope(report)
    spread = spread_plot(
        tables.per_image_dice(report, scope), tables.per_image_dice(report, scope, full=True), few_label=label
    )
    weights = [(layer, Markup(weight_plot(layer, f"weights-{i}"))) for i, layer in enumerate(report.weights)]
    return {
        "loss": _markup(loss_plot(report.history)),
        "validation": _markup(validation_plot(report.history)),
        "roc": _markup(roc_plot(*curves)),
        "reliability": _markup(reliability_plot(*curves)),
        "risk": _markup(risk_plot(*curves)),
        "spread": _markup(spread),
        "weights": weights,
    }


def _markup(svg: str | None) -> Markup | None:
    # The only text in these elements that is not our own was escaped when matplotlib wrote it.
    return None if svg is None else Markup(svg)


def _example(example: Example) -> dict[str, Any]:
    return {
        "role": example.role,
        "id": example.id,
        "dice": number(example.dice, 3),
        "panels": example_panels(example),
        "has_roi": example.roi is not None,
    }


def _legend() -> Mapping[str, str]:
    colors = {"found": TRUE_POSITIVE, "false alarm": FALSE_POSITIVE, "missed": FALSE_NEGATIVE}
    return {name: _css(color) for name, color in colors.items()}


def _ramp() -> str:
    """The uncertainty colours as a CSS gradient."""
    return ", ".join(_css(color) for color in colormap()[::15])


def _css(color: Any) -> str:
    red, green, blue = (int(part) for part in color)
    return f"#{red:02x}{green:02x}{blue:02x}"
