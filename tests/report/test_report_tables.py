from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from d2ed2q.report import RunReport
from d2ed2q.report.names import learner_name, number, phase_name, signed
from d2ed2q.report.tables import (
    class_table,
    diversity_bars,
    diversity_figures,
    headline,
    image_rows,
    learner_tables,
    main_scope,
    object_table,
)


def changed(report: RunReport, **evaluation: Any) -> RunReport:
    return dataclasses.replace(report, evaluation={**report.evaluation, **evaluation})


def test_headline_compares_the_prediction_in_its_region(report: RunReport) -> None:
    head = headline(report)
    assert head.sentence == (
        "On 20 images, inside the region of interest, the few-bit meta learner reached Dice 0.815 and ROC-AUC 0.973; "
        "before quantization its Dice was 0.815."
    )
    tiles = {tile.name: (tile.value, tile.note) for tile in head.tiles}
    assert tiles["Dice"] == ("0.8145", "full precision 0.8154 (−0.0009)")
    assert tiles["Calibration error"] == ("0.0123", "full precision 0.0123 (±0.0000)")
    assert tiles["Bits per weight"] == ("4", "")
    assert tiles["Size"] == ("0.21 MB", "")


def test_headline_of_a_run_that_was_not_quantized_does_not_speak_of_bits(report: RunReport) -> None:
    history = [row for row in report.history if row["phase"] == "full_precision"]
    plain = dataclasses.replace(changed(report, full_precision=None), history=history, weights=[])
    assert not plain.quantized
    assert "the finished meta learner" in headline(plain).sentence
    assert "quantization" not in headline(plain).sentence
    assert headline(plain).tiles[0].note == "full precision not measured"
    assert {row.weights for row in learner_tables(plain)[0].rows} == {"finished"}


def test_headline_takes_the_whole_image_where_there_is_no_region(report: RunReport) -> None:
    whole = changed(report, scopes={"whole": report.evaluation["scopes"]["whole"]}, images=["one"])
    assert main_scope(whole) == "whole"
    assert headline(whole).sentence.startswith("On 1 image, on the whole image, the few-bit meta learner")


def test_learner_tables_name_region_and_precision(report: RunReport) -> None:
    fov, whole = learner_tables(report)
    assert fov.heading == "Every learner, inside the region of interest"
    assert whole.heading == "Every learner, on the whole image"
    assert fov.columns[:3] == ["Dice", "Dice per image, mean ± SD", "IoU"]
    assert len(fov.rows) == 12
    full, few = fov.rows[2:4]
    assert (full.learner, full.weights, full.is_prediction) == ("Meta learner", "full precision", True)
    assert (few.learner, few.weights, few.is_prediction) == ("", "few-bit", True)
    assert (full.cells[0], few.cells[0]) == ("0.8154", "0.8145")
    assert few.cells[1].endswith("± 0.021")
    assert whole.rows[3].cells[0] == "0.8125"
    assert sum(row.is_prediction for row in fov.rows) == 2
    assert all(len(row.cells) == len(fov.columns) for row in fov.rows)


def test_doubt_has_a_table_of_its_own(report: RunReport) -> None:
    doubt = learner_tables(report, doubt=True)[0]
    assert doubt.columns == ["Calibration error", "Brier score", "Negative log-likelihood", "AURC"]
    assert doubt.rows[0].cells == ["0.0123", "0.0331", "0.1092", "0.0071"]


def test_what_is_missing_is_marked_and_what_nobody_has_is_left_out(report: RunReport) -> None:
    scopes = {"fov": {"meta": {"dice": 0.8, "auc": None}, "base_1": {"dice": float("nan"), "iou": 0.5}, "base_2": None}}
    table = learner_tables(changed(report, scopes=scopes, full_precision=None))[0]
    assert table.columns == ["Dice", "Dice per image, mean ± SD", "IoU"]
    assert [row.cells for row in table.rows] == [["0.8000", "–", "–"], ["–", "–", "0.5000"], ["–", "–", "–"]]
    assert learner_tables(RunReport("nothing")) == []


def test_surface_distances_carry_their_unit(report: RunReport) -> None:
    figures = {"dice": 0.9, "hd95": 3.456, "assd": 0.7, "surface_unit": "mm"}
    table = learner_tables(changed(report, scopes={"whole": {"meta": figures}}, full_precision=None))[0]
    assert table.columns[-2:] == ["HD95, mm", "ASSD, mm"]
    assert table.rows[0].cells[-2:] == ["3.46", "0.70"]
    figures["per_image"] = {"hd95": {"values": [3.456, None, None]}, "assd": {"values": [0.7, 0.7, 0.7]}}
    table = learner_tables(changed(report, scopes={"whole": {"meta": figures}}, full_precision=None))[0]
    assert table.rows[0].cells[-2:] == ["3.46 (1 of 3)", "0.70"], "where it finds nothing there is no distance"


def test_classes_have_a_table_beside_full_precision(report: RunReport) -> None:
    assert class_table(report) is None

    def scopes(shift: float) -> dict[str, Any]:
        classes = {"background": {"dice": 0.99}, "anterior": {"dice": 0.87 + shift, "hd95": 1.5}}
        return {"whole": {"meta": {"dice": 0.87, "surface_unit": "mm", "per_class": classes}}}

    table = class_table(changed(report, scopes=scopes(0.0), full_precision={"scopes": scopes(0.01)}))
    assert table is not None
    assert table.columns == ["Dice", "HD95, mm"]
    assert [(row.learner, row.weights, row.cells) for row in table.rows[2:]] == [
        ("anterior", "full precision", ["0.8800", "1.50"]),
        ("", "few-bit", ["0.8700", "1.50"]),
    ]


def test_objects_have_a_table_whose_rows_share_one_name(report: RunReport) -> None:
    assert object_table(report) is None
    found = {"object_f1": 0.75, "object_hausdorff": 81.234, "objects_found": 107, "objects_true": 120}
    table = object_table(changed(report, objects=found, full_precision={"objects": found | {"object_f1": 0.7}}))
    assert table is not None
    assert table.heading.endswith("107 found, 120 true")
    assert table.columns == ["Object F1", "Object Hausdorff, pixels"]
    assert [(row.learner, row.weights, row.cells) for row in table.rows] == [
        ("all images", "full precision", ["0.7000", "81.23"]),
        ("", "few-bit", ["0.7500", "81.23"]),
    ]
    alone = object_table(changed(report, objects=found, full_precision=None))
    assert alone is not None
    assert [row.learner for row in alone.rows] == ["all images"]


def test_images_are_listed_lowest_first_and_undefined_last(report: RunReport) -> None:
    def scopes(*values: float | None) -> dict[str, Any]:
        return {"fov": {"meta": {"dice": 0.8, "per_image": {"dice": {"values": list(values)}}}}}

    full = {"scopes": scopes(0.81, None, 0.71)}
    rows = image_rows(changed(report, scopes=scopes(0.8, None, 0.7), full_precision=full, images=["a", "b", "c"]))
    assert rows == [("c", "0.7000", "0.7100"), ("a", "0.8000", "0.8100"), ("b", "–", "–")]
    assert image_rows(changed(report, scopes=scopes(0.8), images=["a", "b"])) == []


def test_diversity_is_shown_for_each_tap_in_order(report: RunReport) -> None:
    bars = diversity_bars(report)
    assert [bar.tap for bar in bars] == ["encoder_1", "encoder_2", "centre", "decoder_2", "decoder_1"]
    assert (bars[2].few, bars[2].few_share, bars[2].full) == ("0.380", 0.38, "0.381")
    unknown = diversity_bars(changed(report, diversity={"cka": {"centre": None}}, full_precision=None))
    assert unknown == [("centre", "not measured", None, None, None)]
    tiles = diversity_figures(report)
    assert [tile.value for tile in tiles] == ["0.0213", "0.9870"]
    assert tiles[0].note.endswith("full precision 0.0222")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.81449, "0.8145"), (1, "1.0000"), (None, "not measured"), (float("nan"), "not measured"), ("x", "not measured")],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_differences_carry_a_sign_unless_they_round_to_nothing() -> None:
    assert [signed(value) for value in (0.0012, -0.0012, 0.00004, 0.0, -0.00004)] == [
        "+0.0012",
        "−0.0012",
        "±0.0000",
        "±0.0000",
        "±0.0000",
    ]


def test_names() -> None:
    assert learner_name("base_12") == "Base learner 12"
    assert learner_name("base_mean") == "Mean of base learners"
    assert learner_name("unheard_of") == "unheard_of"
    assert phase_name("quantization_3") == "step 3"
    assert phase_name("full_precision") == "full precision"
