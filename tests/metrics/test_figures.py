"""The figures of one learner, in both scopes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import (
    assd,
    average_precision,
    binary_figures,
    brier,
    centreline_overlap,
    cl_dice,
    confusion,
    expected_calibration_error,
    hd95,
    multiclass_figures,
    negative_log_likelihood,
    risk_coverage,
    roc_auc,
)

_COUNTED = ("dice", "iou", "accuracy", "sensitivity", "specificity", "mcc")
Images = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray | None]]


@pytest.fixture
def images() -> Images:
    """Three images of different sizes; the second has no region of interest."""
    random = np.random.default_rng(0)
    probabilities: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    rois: list[np.ndarray | None] = []
    for height, width in ((16, 20), (18, 15), (12, 24)):
        label = random.random((height, width)) < 0.3
        noise = random.random((height, width))
        probabilities.append((0.6 * noise + 0.4 * label * random.random((height, width))).astype(np.float32))
        labels.append(label.astype(np.int64))
        roi = np.zeros((height, width), bool)
        roi[2:-2, 3:-1] = True
        rois.append(roi)
    rois[1] = None
    return probabilities, labels, rois


def _inside(images: Images) -> tuple[list[np.ndarray], list[np.ndarray]]:
    probabilities, labels, rois = images
    regions = [np.ones_like(label, bool) if roi is None else roi for label, roi in zip(labels, rois, strict=True)]
    return (
        [probability[region] for probability, region in zip(probabilities, regions, strict=True)],
        [label[region] for label, region in zip(labels, regions, strict=True)],
    )


def _blanked(images: Images) -> tuple[list[np.ndarray], list[np.ndarray]]:
    probabilities, labels, rois = images
    blank = [p if roi is None else p * roi for p, roi in zip(probabilities, rois, strict=True)]
    return blank, labels


@pytest.mark.parametrize("scope", ["fov", "whole"])
def test_pooled_and_per_image_figures_are_those_of_the_scopes_pixels(images: Images, scope: str) -> None:
    figures = binary_figures(*images, 0.4, scope=scope)
    parts, truths = _inside(images) if scope == "fov" else _blanked(images)
    p, y = (np.concatenate([part.ravel() for part in group]) for group in (parts, truths))
    pooled = confusion(p > 0.4, y)
    for name in _COUNTED:
        assert figures[name] == pytest.approx(getattr(pooled, name))
        values = [getattr(confusion(a > 0.4, b), name) for a, b in zip(parts, truths, strict=True)]
        assert figures["per_image"][name]["values"] == pytest.approx(values)
        assert figures["per_image"][name]["mean"] == pytest.approx(np.mean(values))
        assert figures["per_image"][name]["std"] == pytest.approx(np.std(values, ddof=1))
    for name, figure in (("auc", roc_auc), ("average_precision", average_precision)):
        assert figures[name] == pytest.approx(figure(p, y))
        assert figures["per_image"][name]["values"] == pytest.approx(
            [figure(a, b) for a, b in zip(parts, truths, strict=True)]
        )
    assert figures["ece"] == pytest.approx(expected_calibration_error(p, y))
    assert figures["brier"] == pytest.approx(brier(p, y))
    assert figures["nll"] == pytest.approx(negative_log_likelihood(p, y))
    sure = np.where(p > 0.4, p, 1 - p)
    assert figures["aurc"] == pytest.approx(risk_coverage(sure, (p > 0.4) == y).aurc)
    assert (figures["scope"], figures["threshold"], figures["images"]) == (scope, 0.4, 3)
    assert figures["pixels"] == len(y)


def test_the_scopes_differ_where_the_label_leaves_the_region(images: Images) -> None:
    inside, whole = (binary_figures(*images, 0.4, scope=scope) for scope in ("fov", "whole"))
    assert whole["sensitivity"] < inside["sensitivity"]
    assert whole["pixels"] > inside["pixels"]


def test_without_regions_the_scopes_agree(images: Images) -> None:
    probabilities, labels, _ = images
    none: list[np.ndarray | None] = [None] * 3
    inside, whole = (binary_figures(probabilities, labels, none, 0.5, scope=scope) for scope in ("fov", "whole"))
    assert {**inside, "scope": ""} == {**whole, "scope": ""}


def test_nothing_outside_the_region_is_predicted_whatever_the_threshold(images: Images) -> None:
    probabilities, labels, _ = images
    outside = binary_figures(probabilities, labels, [np.zeros_like(label) for label in labels], -1.0, scope="whole")
    assert outside["sensitivity"] == 0.0
    assert outside["specificity"] == 1.0


@pytest.mark.parametrize("scope", ["fov", "whole"])
def test_centrelines_and_outlines_stay_in_the_scope(images: Images, scope: str) -> None:
    probabilities, labels, rois = images
    figures = binary_figures(*images, 0.4, scope=scope, tubular=True, surface=True)
    regions = [np.ones_like(label, bool) if roi is None else roi for label, roi in zip(labels, rois, strict=True)]
    masks = [(p > 0.4) & region for p, region in zip(probabilities, regions, strict=True)]
    truths = [(y > 0) & (region | (scope == "whole")) for y, region in zip(labels, regions, strict=True)]
    pairs = list(zip(masks, truths, strict=True))
    assert figures["per_image"]["cldice"]["values"] == pytest.approx([cl_dice(*pair) for pair in pairs])
    overlaps = [centreline_overlap(*pair) for pair in pairs]
    assert figures["cldice"] == pytest.approx((overlaps[0] + overlaps[1] + overlaps[2]).cl_dice)
    for name, figure in (("hd95", hd95), ("assd", assd)):
        values = [figure(*pair) for pair in pairs]
        assert figures["per_image"][name]["values"] == pytest.approx(values)
        assert figures[name] == pytest.approx(np.mean(values))
    assert figures["surface_unit"] == "pixels"


def test_surface_distances_are_in_millimetres_where_spacings_are_known(images: Images) -> None:
    pixels = binary_figures(*images, 0.4, surface=True)
    millimetres = binary_figures(*images, 0.4, surface=True, spacing=[(2.0, 2.0)] * 3)
    assert millimetres["surface_unit"] == "mm"
    assert millimetres["assd"] == pytest.approx(2 * pixels["assd"])
    assert binary_figures(*images, 0.4, surface=True, spacing=[None] * 3) == pixels


def _strict_json(figures: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(json.dumps(figures, allow_nan=False))
    return decoded


def test_undefined_figures_become_null() -> None:
    probabilities = [np.full((4, 4), 0.2, np.float32), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)]
    labels = [np.zeros((4, 4), np.int64), np.array([[1, 0], [1, 0]])]
    figures = _strict_json(binary_figures(probabilities, labels, [None, None], 0.5, tubular=True, surface=True))
    per_image = figures["per_image"]
    assert per_image["auc"] == {"mean": 1.0, "std": None, "values": [None, 1.0]}
    assert per_image["dice"] == {"mean": 1.0, "std": 0.0, "values": [1.0, 1.0]}
    assert per_image["sensitivity"]["values"] == [None, 1.0]
    assert per_image["hd95"]["values"] == [None, 0.0]
    blank = _strict_json(binary_figures(probabilities[:1], labels[:1], [None], 0.5, surface=True))
    assert (blank["auc"], blank["mcc"], blank["hd95"]) == (None, None, None)
    assert blank["per_image"]["auc"] == {"mean": None, "std": None, "values": [None]}
    regions = [np.zeros((4, 4), bool), None]  # of the first image nothing counts, so it is neither right nor wrong
    part = _strict_json(binary_figures(probabilities, labels, regions, 0.5, tubular=True))["per_image"]
    assert part["dice"]["values"] == part["cldice"]["values"] == part["accuracy"]["values"] == [None, 1.0]


@pytest.fixture
def classes(images: Images) -> Images:
    """The images with three classes."""
    _, labels, rois = images
    random = np.random.default_rng(1)
    soft, numbers = [], []
    for label in labels:
        number = label * random.integers(1, 3, label.shape)
        weights = random.random((3, *label.shape)) + np.eye(3)[number].transpose(2, 0, 1)
        soft.append((weights / weights.sum(0)).astype(np.float32))
        numbers.append(number)
    return soft, numbers, rois


_NAMES = ("background", "anterior", "posterior")


@pytest.mark.parametrize("scope", ["fov", "whole"])
def test_multi_class_figures_are_those_of_the_scopes_pixels(classes: Images, scope: str) -> None:
    probabilities, labels, rois = classes
    figures = _strict_json(multiclass_figures(*classes, classes=_NAMES, scope=scope, surface=True))
    regions = [np.ones_like(label, bool) if roi is None else roi for label, roi in zip(labels, rois, strict=True)]
    masks = [p.argmax(0) * region for p, region in zip(probabilities, regions, strict=True)]
    if scope == "fov":
        soft = [p[:, region] for p, region in zip(probabilities, regions, strict=True)]
        truths = [label * region for label, region in zip(labels, regions, strict=True)]
        counted = regions
    else:
        background = np.array([1, 0, 0], np.float32)[:, None, None]
        soft = [
            np.where(region, p, background).reshape(3, -1) for p, region in zip(probabilities, regions, strict=True)
        ]
        truths = labels
        counted = [np.ones_like(region) for region in regions]
    p = np.concatenate(soft, axis=1)
    y = np.concatenate([truth[region] for truth, region in zip(truths, counted, strict=True)])
    predicted = np.concatenate([mask[region] for mask, region in zip(masks, counted, strict=True)])
    dice = []
    for number, name in enumerate(_NAMES):
        pooled = confusion(predicted == number, y == number)
        assert figures["per_class"][name]["dice"] == pytest.approx(pooled.dice)
        assert figures["per_class"][name]["iou"] == pytest.approx(pooled.iou)
        dice.append(pooled.dice)
    assert figures["dice"] == pytest.approx(np.mean(dice[1:]))
    assert figures["accuracy"] == pytest.approx(np.mean(predicted == y))
    assert figures["ece"] == pytest.approx(expected_calibration_error(p, y))
    assert figures["brier"] == pytest.approx(brier(p, y))
    assert figures["nll"] == pytest.approx(negative_log_likelihood(p, y))
    assert figures["aurc"] == pytest.approx(risk_coverage(p.max(0), predicted == y).aurc)
    assert figures["pixels"] == len(y)
    first = [confusion((masks[0] == c)[counted[0]], (truths[0] == c)[counted[0]]).dice for c in (1, 2)]
    assert figures["per_image"]["dice"]["values"][0] == pytest.approx(np.mean(first))
    distances = [[hd95(mask == c, truth == c) for c in (1, 2)] for mask, truth in zip(masks, truths, strict=True)]
    assert figures["per_image"]["hd95"]["values"] == pytest.approx(np.mean(distances, axis=1))
    assert figures["per_class"]["posterior"]["hd95"] == pytest.approx(np.mean(distances, axis=0)[1])
    assert figures["hd95"] == pytest.approx(np.mean(distances))
    assert "hd95" not in figures["per_class"]["background"]


def test_two_classes_agree_with_the_binary_figures(images: Images) -> None:
    probabilities, labels, rois = images
    binary = binary_figures(*images, 0.5)
    both = [np.stack((1 - p, p)) for p in probabilities]
    softmax = multiclass_figures(both, labels, rois, classes=("background", "vessel"))
    for name in ("dice", "iou", "accuracy", "nll", "aurc"):
        assert softmax[name] == pytest.approx(binary[name], rel=1e-6)
    assert softmax["brier"] == pytest.approx(2 * binary["brier"], rel=1e-6)


def test_a_class_that_is_nowhere_has_no_distance(classes: Images) -> None:
    probabilities, labels, rois = classes
    without = [np.where(label == 2, 0, label) for label in labels]
    figures = _strict_json(multiclass_figures(probabilities, without, rois, classes=_NAMES, surface=True))
    assert figures["per_class"]["posterior"]["assd"] is None
    assert figures["assd"] == figures["per_class"]["anterior"]["assd"]


def test_drives_second_annotator_scores_what_is_known_of_him(real_data: Callable[[str], Path]) -> None:
    test = real_data("DRIVE") / "test"

    def read(folder: str) -> list[np.ndarray]:
        masks = []
        for path in sorted((test / folder).glob("*.gif")):
            with Image.open(path) as image:
                masks.append(np.asarray(image.convert("L")) > 127)
        return masks

    second = [mask.astype(np.float32) for mask in read("2nd_manual")]
    figures = binary_figures(second, read("1st_manual"), read("mask"), 0.5, scope="fov")
    assert figures["images"] == 20
    assert figures["dice"] == pytest.approx(0.7891, abs=5e-5)
    assert figures["per_image"]["dice"]["mean"] == pytest.approx(0.7881, abs=5e-5)
    # A mask's only operating point: the area is the mean of its two rates.
    assert figures["auc"] == pytest.approx((figures["sensitivity"] + figures["specificity"]) / 2)


def test_unusable_input_is_named(images: Images, classes: Images) -> None:
    probabilities, labels, rois = images
    with pytest.raises(ConfigError, match="unknown scope 'inside'"):
        binary_figures(*images, 0.5, scope="inside")
    with pytest.raises(ConfigError, match="threshold"):
        binary_figures(*images, math.nan)
    with pytest.raises(DataError, match="got 2 and 3"):
        binary_figures(probabilities, labels[:2], rois, 0.5)
    with pytest.raises(DataError, match="no images"):
        binary_figures([], [], [], 0.5)
    with pytest.raises(DataError, match="no pixel"):
        binary_figures(probabilities[:1], labels[:1], [np.zeros_like(labels[0])], 0.5)
    with pytest.raises(DataError, match="probability has shape"):
        binary_figures([probabilities[0].T, *probabilities[1:]], labels, rois, 0.5)
    with pytest.raises(DataError, match="roi has shape"):
        binary_figures(probabilities, labels, [rois[2], None, None], 0.5)
    with pytest.raises(DataError, match="sigmoid"):
        binary_figures([probability * 9 for probability in probabilities], labels, rois, 0.5)
    for spacing in ([(1.0, 1.0)], (1.0, 1.0, 1.0)):
        with pytest.raises(ConfigError, match="one entry for each of the 3 images"):
            binary_figures(*images, 0.5, surface=True, spacing=spacing)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="some images only"):
        binary_figures(*images, 0.5, surface=True, spacing=[(1.0, 1.0), None, (1.0, 1.0)])
    with pytest.raises(DataError, match="2 classes"):
        multiclass_figures(*classes, classes=("background", "organ"))
    with pytest.raises(ConfigError, match="different names"):
        multiclass_figures(*classes, classes=("background", "organ", "organ"))
    soft, numbers, regions = classes
    with pytest.raises(DataError, match="class 3"):
        multiclass_figures(soft, [number + 1 for number in numbers], regions, classes=_NAMES)


def test_a_class_that_is_not_there_does_not_count_whatever_is_found_of_it() -> None:
    label = np.zeros((4, 4), np.int64)
    label[:2] = 1
    for stray in (0, 1):
        mask = label.copy()
        mask[3, 3] = 2 * stray
        probability = np.eye(3, dtype=np.float32)[mask].transpose(2, 0, 1)
        figures = multiclass_figures([probability], [label], [None], classes=("background", "one", "two"))
        assert figures["dice"] == 1
        assert figures["per_class"]["two"]["dice"] is None
        assert figures["per_image"]["dice"]["values"] == [1]
        empty = multiclass_figures([probability], [0 * label], [None], classes=("background", "one", "two"))
        assert empty["per_image"]["dice"]["values"] == [0], "with no class at all, false alarms are all there is"
    nothing = np.eye(3, dtype=np.float32)[0 * label].transpose(2, 0, 1)
    empty = multiclass_figures([nothing], [0 * label], [None], classes=("background", "one", "two"))
    assert empty["per_image"]["dice"]["values"] == [None]
