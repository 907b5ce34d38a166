from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from d2ed2q.errors import DataError
from d2ed2q.report import RunReport, WeightHistogram
from d2ed2q.report.plots import (
    loss_plot,
    phase_bands,
    reliability_plot,
    risk_plot,
    roc_plot,
    spread_plot,
    thin,
    validation_plot,
    weight_plot,
)


def texts(svg: str) -> list[str]:
    return [(element.text or "").strip() for element in ElementTree.fromstring(svg).iter("text")]


def paths(svg: str) -> int:
    return len(re.findall(r"<path", svg))


def test_phases_are_found_in_the_log(report: RunReport) -> None:
    bands = phase_bands(report.history)
    assert [(band.phase, band.begin, band.end, band.frozen) for band in bands] == [
        ("full_precision", 0, 40, 0.0),
        ("quantization_1", 40, 50, 0.3),
        ("quantization_2", 50, 60, 0.6),
        ("quantization_3", 60, 70, 0.8),
        ("quantization_4", 70, 80, 1.0),
    ]


def test_phases_without_a_row_of_their_own_begin_before_their_first_epoch() -> None:
    rows: list[dict[str, Any]] = [{"kind": "train", "phase": "quantization_1", "epoch": e, "loss": 1.0} for e in (4, 5)]
    band = phase_bands([*rows, {"kind": "train", "phase": "quantization_1", "epoch": None}, {"kind": "train"}])
    assert [(item.begin, item.end, item.frozen) for item in band] == [(3, 5, None)]


def test_learning_curves_name_phases_and_figures(report: RunReport) -> None:
    loss, validation = loss_plot(report.history), validation_plot(report.history)
    assert loss is not None
    assert validation is not None
    for svg in (loss, validation):
        assert {"full precision", "step 1", "step 4", "epoch", "frozen %"} <= set(texts(svg))
    assert {"total loss", "segmentation part", "loss"} <= set(texts(loss))
    assert {"Dice", "ROC-AUC", "validation"} <= set(texts(validation))


def test_one_epoch_and_figures_that_are_missing_still_draw() -> None:
    row = {"kind": "train", "epoch": 1, "loss": 0.4, "segmentation": None}
    svg = loss_plot([row])
    assert svg is not None
    assert "segmentation part" not in texts(svg)
    assert loss_plot([{**row, "loss": float("nan")}]) is None
    assert validation_plot([row]) is None


def test_curves_show_the_prediction_in_both_precisions(report: RunReport) -> None:
    few, full = report.curves["few_bit"], report.curves["full_precision"]
    for draw in (roc_plot, reliability_plot, risk_plot):
        both = draw(few, full, "meta", "few-bit")
        assert both is not None
        labels = texts(both)
        assert {"Meta learner, few-bit", "Meta learner, full precision", "Ensemble mean"} <= set(labels)
        assert labels.count("base learners") == 1
        one = draw(few, None, "meta", "few-bit")
        assert one is not None
        assert "Meta learner, full precision" not in texts(one)
        assert paths(one) < paths(both)
        assert draw(None, None, "meta", "few-bit") is None


def test_curves_of_nothing_but_nan_are_left_out() -> None:
    nothing = {"meta": {"roc": (np.full(3, np.nan), np.full(3, np.nan))}}
    assert roc_plot(nothing, None, "meta", "few-bit") is None
    assert roc_plot({"meta": {}}, None, "meta", "few-bit") is None


def test_a_corner_is_enlarged_only_where_the_curve_reaches_it() -> None:
    x = np.linspace(0, 1, 50)
    good, poor = (roc_plot({"meta": {"roc": (x, x**power)}}, None, "meta", "few-bit") for power in (0.05, 0.7))
    assert good is not None
    assert poor is not None
    assert "top left, enlarged" in texts(good)
    assert "top left, enlarged" not in texts(poor)


def test_dots_of_the_calibration_plot_grow_with_their_share() -> None:
    def circle(share: float) -> float:
        curve = {"meta": {"reliability": (np.array([0.5]), np.array([0.5]), np.array([share]))}}
        svg = reliability_plot(curve, None, "meta", "few-bit")
        assert svg is not None
        sizes = re.findall(r'<path id="[^"]*" d="M 0 (\S+)', svg)
        return max(float(size) for size in sizes)

    assert circle(0.9) > 2 * circle(0.1)


def test_thinning_keeps_the_ends_and_the_shape() -> None:
    x = np.linspace(0, 1, 50_000)
    y = np.sqrt(x)
    few_x, few_y = thin(x, y)
    assert len(few_x) <= 300
    assert (few_x[0], few_y[0], few_x[-1], few_y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(x, few_x, few_y) - y).max() < 0.005
    assert thin(x[:10], y[:10])[0] is not None
    assert len(thin(x[:10], y[:10])[0]) == 10
    same = np.zeros(1000)
    assert len(thin(same, same)[0]) == 2


def test_weights_are_drawn_before_and_after(report: RunReport) -> None:
    svg = weight_plot(report.weights[0], "weights-0")
    assert {"before", "after", "weight"} <= set(texts(svg))
    outlines = [d for d in re.findall(r' d="([^"]*)"', svg) if d.count("L") > 100]
    assert len(outlines) == 2
    zeros = WeightHistogram("conv", 2, np.zeros(5), np.zeros(5), 1)
    assert weight_plot(zeros, "weights-1")


@pytest.mark.parametrize("values", [np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf])])
def test_weights_that_cannot_be_drawn_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="conv1"):
        WeightHistogram("conv1", 4, np.zeros(3), values, 3)


def test_the_spread_is_drawn_without_undefined_images() -> None:
    svg = spread_plot([0.7, None, 0.8], [0.71, None, None], "few-bit")
    assert svg is not None
    assert {"few-bit", "full precision", "Dice"} <= set(texts(svg))
    alone = spread_plot([0.7, 0.8], [], "finished")
    assert alone is not None
    assert "full precision" not in texts(alone)
    assert spread_plot([None], [], "few-bit") is None


def some_plots(report: RunReport) -> list[str]:
    drawn = [
        loss_plot(report.history),
        roc_plot(report.curves["few_bit"], report.curves["full_precision"], "meta", "few-bit"),
        weight_plot(report.weights[0], "weights-0"),
    ]
    return [svg for svg in drawn if svg is not None]


def test_a_users_matplotlib_settings_change_nothing_and_come_back(report: RunReport) -> None:
    expected = some_plots(report)
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        assert some_plots(report) == expected
        assert dict(mpl.rcParams) == before


def test_plots_take_their_colours_from_the_page(report: RunReport) -> None:
    for svg in some_plots(report):
        assert "var(--ink)" in svg
        assert "#0102" not in svg
        painted = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", svg))
        assert not painted, f"fixed colours do not follow dark mode: {painted}"


def test_names_of_any_length_leave_room_for_the_plot(report: RunReport) -> None:
    long = "a_very_long_name" * 20
    rows = [{**row, "phase": long} for row in report.history]
    loss = loss_plot(rows)
    roc = roc_plot({long: report.curves["few_bit"]["meta"]}, None, long, "few-bit")  # type: ignore[index]
    assert loss is not None
    assert roc is not None
    assert "a very long namea very long n…" in texts(loss)
    assert "a_very_long_namea_very_long_n…, few-bit" in texts(roc)


def test_names_in_any_script_and_with_dollar_signs_are_only_text(report: RunReport) -> None:
    draw: Callable[..., str | None] = roc_plot
    curve = {"患者 $x^2$ <b>": report.curves["few_bit"]["meta"]}  # type: ignore[index]
    svg = draw(curve, None, "患者 $x^2$ <b>", "few-bit")
    assert svg is not None
    assert "患者 $x^2$ <b>, few-bit" in texts(svg)
