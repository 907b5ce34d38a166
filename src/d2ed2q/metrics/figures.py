"""All figures of one learner in one scope, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.calibration import brier, expected_calibration_error, negative_log_likelihood, risk_coverage
from d2ed2q.metrics.checks import as_binary, require_classes, require_probabilities, require_same_shape
from d2ed2q.metrics.confusion_matrix import Confusion, confusion
from d2ed2q.metrics.ranking import Ranking
from d2ed2q.metrics.summary import defined as _defined
from d2ed2q.metrics.summary import mean as _mean
from d2ed2q.metrics.summary import summary as _summary
from d2ed2q.metrics.surface import assd_of, hd95_of, surface_distances
from d2ed2q.metrics.topology import centreline_overlap

__all__ = ["binary_figures", "multiclass_figures"]

_COUNTED = ("dice", "iou", "accuracy", "sensitivity", "specificity", "mcc")
_SCOPES = ("fov", "whole")
Spacings = Sequence[Sequence[float] | None]


@dataclass(frozen=True)
class _Case:
    """One image as a scope sees it; arrays of the whole image, and flat ones of the pixels that count."""

    probability: np.ndarray  # N, or C×N
    truth: np.ndarray  # N
    predicted: np.ndarray  # N
    mask: np.ndarray  # H×W; nothing outside the region of interest
    label: np.ndarray  # H×W; in the scope "fov" nothing outside it


def binary_figures(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    threshold: float,
    *,
    scope: str = "fov",
    tubular: bool = False,
    surface: bool = False,
    spacing: Spacings | None = None,
    clean: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Scores one learner's binary probabilities.

    Scope ``fov`` counts the pixels inside each image's region of interest and no others; ``whole`` counts all pixels,
    with prediction and probability set to 0 outside the region and the label as given. Without a region both are the
    same.

    Args:
        probabilities: for every image float32 ``*spatial`` in [0, 1], at the image's own resolution.
        labels: for every image ``*spatial``, booleans or 0 and 1.
        rois: for every image ``*spatial``, booleans or 0 and 1; or None.
        threshold: a pixel is positive where its probability exceeds this.
        scope: ``fov`` or ``whole``.
        tubular: whether to give clDice.
        surface: whether to give HD95 and ASSD.
        spacing: for every image the millimetres per pixel along each axis, or None; None in place of the list, or for
            all images, gives surface distances in pixels.
        clean: what is done to a mask after the threshold: bool ``*spatial`` to the same.

    Returns:
        dict[str, Any]: JSON-ready, with None for what is undefined (NaN). Of all pixels pooled: ``dice``, ``iou``,
        ``auc``, ``average_precision``, ``accuracy``, ``sensitivity``, ``specificity``, ``mcc``, ``ece``, ``brier``,
        ``nll``, ``aurc`` (confidence: the probability of the predicted class); ``cldice`` (``tubular``) from the
        centreline pixels pooled; ``hd95`` and ``assd`` (``surface``) as means over the images where they are defined,
        with ``surface_unit``. ``per_image`` holds ``{"mean", "std", "values"}`` of each of these but the calibration
        figures: mean and sample standard deviation (n − 1) over defined values. And ``scope``, ``threshold``,
        ``images``, ``pixels``.

    Raises:
        ConfigError: an unknown scope, a threshold that is no number, or spacings that do not fit.
        DataError: no images or pixels, lists of unequal length, shapes that differ, or values out of range.
    """
    if math.isnan(threshold):
        raise ConfigError("threshold must be a number, got NaN")
    _require_lists(probabilities, labels, rois, scope)
    unit = _surface_unit(spacing, len(labels)) if surface else None
    cases = [
        _binary_case(*images, threshold=threshold, scope=scope, clean=clean)
        for images in zip(probabilities, labels, rois, strict=True)
    ]
    probability, truth, predicted = _pooled(cases)
    counts = [confusion(case.predicted, case.truth) for case in cases]
    rankings = [Ranking(case.probability, case.truth) for case in cases]

    def defined(values: Iterable[float]) -> list[float]:
        """An image whose region is empty has no figures; without a pixel, nothing is as right as it is wrong."""
        return [value if case.truth.size else math.nan for value, case in zip(values, cases, strict=True)]

    per_image = {name: defined(getattr(count, name) for count in counts) for name in _COUNTED}
    per_image["auc"] = [ranking.roc_auc() for ranking in rankings]
    per_image["average_precision"] = [ranking.average_precision() for ranking in rankings]
    everything, ranking = reduce(add, counts), Ranking(probability, truth)
    figures: dict[str, float] = {name: getattr(everything, name) for name in _COUNTED}
    figures["auc"] = ranking.roc_auc()
    figures["average_precision"] = ranking.average_precision()
    if tubular:
        overlaps = [centreline_overlap(case.mask, case.label) for case in cases]
        figures["cldice"] = reduce(add, overlaps).cl_dice
        per_image["cldice"] = defined(overlap.cl_dice for overlap in overlaps)
    if surface:
        per_image |= _distances([(case.mask, case.label) for case in cases], spacing)
        figures |= {name: _mean(per_image[name]) for name in ("hd95", "assd")}
    figures |= _doubt(probability, truth, np.where(predicted, probability, 1 - probability), predicted == truth)
    result: dict[str, Any] = {name: _defined(value) for name, value in figures.items()}
    if unit is not None:
        result["surface_unit"] = unit
    return {
        **result,
        "per_image": {name: _summary(values) for name, values in per_image.items()},
        "scope": scope,
        "threshold": float(threshold),
        "images": len(cases),
        "pixels": int(truth.size),
    }


def multiclass_figures(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    *,
    classes: Sequence[str],
    scope: str = "fov",
    surface: bool = False,
    spacing: Spacings | None = None,
) -> dict[str, Any]:
    """Scores one learner's multi-class probabilities; the prediction is the most probable class.

    Scopes as in :func:`binary_figures`: outside the region of interest ``whole`` sets the prediction to background.

    Args:
        probabilities: for every image float32 ``C×*spatial``, softmax, at the image's own resolution.
        labels: for every image ``*spatial``, class numbers 0…C−1 with 0 the background.
        rois: for every image ``*spatial``, booleans or 0 and 1; or None.
        classes: the C names, background first.
        scope: ``fov`` or ``whole``.
        surface: whether to give HD95 and ASSD.
        spacing: as in :func:`binary_figures`.

    Returns:
        dict[str, Any]: JSON-ready, with None for what is undefined (NaN). ``dice`` and ``iou``: of each foreground
        class on all pixels pooled, then the mean over these classes, without those that have no true pixel (a single
        wrong one would turn 1 to 0); ``accuracy``, ``ece`` (most probable class),
        ``brier`` (in [0, 2]), ``nll``, ``aurc`` on all pixels pooled; ``hd95`` and ``assd`` (``surface``), means over
        classes and images where they are defined, with ``surface_unit``. ``per_class``: for each name, background
        included, pooled ``dice`` and ``iou``, and for the foreground ``hd95`` and ``assd``. ``per_image``: as in
        :func:`binary_figures`, of the mean over the foreground classes in an image; of one without any, 0 where
        some was found. And ``scope``, ``images``, ``pixels``.

    Raises:
        ConfigError: an unknown scope, fewer than two classes or one name twice, or spacings that do not fit.
        DataError: no images or pixels, lists of unequal length, shapes that differ, or values out of range.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ConfigError(f"classes must be two or more different names, background first, got {list(classes)}")
    _require_lists(probabilities, labels, rois, scope)
    unit = _surface_unit(spacing, len(labels)) if surface else None
    cases = [
        _multiclass_case(*images, classes=len(classes), scope=scope)
        for images in zip(probabilities, labels, rois, strict=True)
    ]
    probability, truth, predicted = _pooled(cases)
    # counts[image][class]
    counts = [[confusion(case.predicted == c, case.truth == c) for c in range(len(classes))] for case in cases]
    pooled = [reduce(add, of_class) for of_class in zip(*counts, strict=True)]
    per_class = {
        name: {"dice": _if_present(count, "dice"), "iou": _if_present(count, "iou")}
        for name, count in zip(classes, pooled, strict=True)
    }
    figures = {
        "dice": _mean(_if_present(count, "dice") for count in pooled[1:]),
        "iou": _mean(_if_present(count, "iou") for count in pooled[1:]),
        "accuracy": float(np.mean(predicted == truth)),
    }
    per_image = {
        "dice": [_of_image(image[1:], "dice") for image in counts],
        "iou": [_of_image(image[1:], "iou") for image in counts],
        "accuracy": [_accuracy(case) for case in cases],
    }
    if surface:
        of_class = {
            name: _distances([(case.mask == c, case.label == c) for case in cases], spacing)
            for c, name in enumerate(classes)
            if c
        }
        for figure in ("hd95", "assd"):
            for name, distances in of_class.items():
                per_class[name][figure] = _mean(distances[figure])
            figures[figure] = _mean(per_class[name][figure] for name in of_class)
            per_image[figure] = [
                _mean(image) for image in zip(*(distances[figure] for distances in of_class.values()), strict=True)
            ]
    figures |= _doubt(probability, truth, probability.max(0), predicted == truth)
    result: dict[str, Any] = {name: _defined(value) for name, value in figures.items()}
    if unit is not None:
        result["surface_unit"] = unit
    return {
        **result,
        "per_class": {
            name: {figure: _defined(value) for figure, value in values.items()} for name, values in per_class.items()
        },
        "per_image": {name: _summary(values) for name, values in per_image.items()},
        "scope": scope,
        "images": len(cases),
        "pixels": int(truth.size),
    }


def _binary_case(
    probability: np.ndarray,
    label: np.ndarray,
    roi: np.ndarray | None,
    *,
    threshold: float,
    scope: str,
    clean: Callable[[np.ndarray], np.ndarray] | None,
) -> _Case:
    probability, label = np.asarray(probability), as_binary(label, "label")
    require_same_shape(label=label, probability=probability)
    require_probabilities(probability, "probability")
    inside = np.ones(label.shape, np.bool_) if roi is None else _inside(roi, label)
    mask = (probability > threshold) & inside
    if clean is not None:
        mask = clean(mask) & inside
    if roi is None:
        return _Case(probability.reshape(-1), label.reshape(-1), mask.reshape(-1), mask, label)
    if scope == "fov":
        return _Case(probability[inside], label[inside], mask[inside], mask, label & inside)
    probability = np.where(inside, probability, probability.dtype.type(0))
    return _Case(probability.reshape(-1), label.reshape(-1), mask.reshape(-1), mask, label)


def _multiclass_case(
    probability: np.ndarray, label: np.ndarray, roi: np.ndarray | None, *, classes: int, scope: str
) -> _Case:
    probability, label = np.asarray(probability), np.asarray(label)
    if probability.shape != (classes, *label.shape):
        raise DataError(
            f"probability has shape {probability.shape}, but {classes} classes and a label of shape {label.shape} "
            f"need {(classes, *label.shape)}"
        )
    require_probabilities(probability, "probability")
    require_classes(label, classes, "label")
    inside = np.ones(label.shape, np.bool_) if roi is None else _inside(roi, label)
    mask = np.where(inside, probability.argmax(0), 0)
    if scope == "fov":
        return _Case(probability[:, inside], label[inside], mask[inside], mask, np.where(inside, label, 0))
    background = (np.arange(classes) == 0).astype(probability.dtype).reshape(-1, *(1,) * label.ndim)
    probability = np.where(inside, probability, background)
    return _Case(probability.reshape(classes, -1), label.reshape(-1), mask.reshape(-1), mask, label)


def _inside(roi: np.ndarray, label: np.ndarray) -> np.ndarray:
    inside = as_binary(roi, "roi")
    require_same_shape(label=label, roi=inside)
    return inside


def _pooled(cases: Sequence[_Case]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, truth and prediction of all pixels that count, over all images."""
    truth = np.concatenate([case.truth for case in cases])
    if not truth.size:
        raise DataError("the regions of interest leave no pixel to score; check the masks, or use the scope 'whole'")
    probability = np.concatenate([case.probability for case in cases], axis=-1)
    return probability, truth, np.concatenate([case.predicted for case in cases])


def _doubt(probability: np.ndarray, truth: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    return {
        "ece": expected_calibration_error(probability, truth),
        "brier": brier(probability, truth),
        "nll": negative_log_likelihood(probability, truth),
        "aurc": risk_coverage(confidence, correct).aurc,
    }


def _distances(pairs: Sequence[tuple[np.ndarray, np.ndarray]], spacing: Spacings | None) -> dict[str, list[float]]:
    """HD95 and ASSD of every image's mask and label."""
    steps = [None] * len(pairs) if spacing is None else spacing
    both = [surface_distances(mask, label, step) for (mask, label), step in zip(pairs, steps, strict=True)]
    return {"hd95": [hd95_of(*distances) for distances in both], "assd": [assd_of(*distances) for distances in both]}


def _if_present(count: Confusion, figure: str) -> float:
    """A figure of one class; NaN where no pixel is of it."""
    return float(getattr(count, figure)) if count.tp + count.fn else math.nan


def _of_image(foreground: Sequence[Confusion], figure: str) -> float:
    """Mean over the classes that are in an image; where none is, 0 if one was found, as in a binary task, else NaN."""
    mean = _mean(_if_present(count, figure) for count in foreground)
    return 0.0 if math.isnan(mean) and any(count.fp for count in foreground) else mean


def _accuracy(case: _Case) -> float:
    return float(np.mean(case.predicted == case.truth)) if case.truth.size else math.nan


def _require_lists(
    probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray], rois: Sequence[np.ndarray | None], scope: str
) -> None:
    if scope not in _SCOPES:
        raise ConfigError(f"unknown scope {scope!r}: choose fov or whole")
    if not len(probabilities) == len(labels) == len(rois):
        raise DataError(
            f"there must be one label and one region of interest (or None) for each of the {len(probabilities)} "
            f"probability maps, got {len(labels)} and {len(rois)}"
        )
    if not len(labels):
        raise DataError("there are no images to score")


def _surface_unit(spacing: Spacings | None, images: int) -> str:
    if spacing is None:
        return "pixels"
    if len(spacing) != images or any(isinstance(step, (int, float)) for step in spacing):
        raise ConfigError(f"spacing must hold one entry for each of the {images} images: numbers along (H, W), or None")
    known = [step is not None for step in spacing]
    if any(known) and not all(known):
        raise ConfigError(
            "spacing is known for some images only, and millimetres and pixels have no common mean; pass spacing=None"
        )
    return "mm" if all(known) else "pixels"
