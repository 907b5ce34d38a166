"""Predictions on a list of images, and every figure that is made of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from d2ed2q.data import Case, Dataset, Sample
from d2ed2q.deploy.cleaning import clean_mask
from d2ed2q.deploy.objects import separate_objects
from d2ed2q.deploy.pipeline import as_seen
from d2ed2q.ensemble import DeepEnsemble, view_names, views
from d2ed2q.errors import DataError
from d2ed2q.limits import free_memory
from d2ed2q.metrics import (
    binary_figures,
    linear_cka,
    multiclass_figures,
    object_figures,
    pairwise_disagreement,
    q_statistic,
)
from d2ed2q.metrics.summary import mean
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.run_folder import ModelCard

__all__ = ["Scored", "score"]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Predictions on a list of images, kept to draw from, and the figures made of them.

    Attributes:
        figures: ``{"prediction", "scopes", "diversity"}``, ready for JSON; and ``objects`` of the prediction, where
            objects are told apart.
        probabilities: for every view, for every image, ``C×*spatial``; float32, of volumes float16.
        labels: for every image, int64, of volumes uint8.
        rois: for every image, bool or None.
        thresholds: of every view.
    """

    figures: dict[str, Any]
    probabilities: Mapping[str, Sequence[np.ndarray]]
    labels: Sequence[np.ndarray]
    rois: Sequence[np.ndarray | None]
    thresholds: Mapping[str, float]


def score(
    ensemble: DeepEnsemble, card: ModelCard, dataset: Dataset, cases: Sequence[Case], tta: str, sets: int = 1
) -> Scored:
    """Predicts every case at its own resolution and scores every view in every scope.

    Args:
        ensemble: its weights.
        card: of the run.
        dataset: of the cases.
        cases: with labels.
        tta: test-time augmentation.
        sets: of weights that are going to be scored and kept, these included.

    Raises:
        DataError: an image cannot be read, or the predictions will not fit into the memory.
    """
    names = view_names(ensemble.n_base)
    probabilities: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels: list[np.ndarray] = []
    rois: list[np.ndarray | None] = []
    spacings: list[tuple[float, ...] | None] = []
    objects: list[np.ndarray] = []
    cka: dict[str, list[float]] = {}
    # All views of all volumes at once are what fills the memory.
    kept, numbers = (np.float32, np.int64) if card.dims == 2 else (np.float16, np.uint8)
    for case in cases:
        sample = dataset.read(case)
        assert sample.label is not None  # unlabelled cases are left out before
        for name, view in views(predict_sample(ensemble, card, sample, tta)).items():
            probabilities[name].append(view.numpy().astype(kept, copy=False))
        labels.append(sample.label.numpy().astype(numbers, copy=False))
        if sample.objects is not None:
            objects.append(sample.objects.numpy())
        rois.append(None if sample.roi is None else sample.roi.numpy())
        spacings.append(sample.spacing)
        for tap, value in _feature_similarity(ensemble, card, sample).items():
            cka.setdefault(tap, []).append(value)
        if len(labels) == 1:
            _require_memory(probabilities, len(cases), sets)
    thresholds = {name: ensemble.threshold_of(name) for name in names}
    scopes = ("fov", "whole") if any(roi is not None for roi in rois) else ("whole",)
    figures = {
        "prediction": ensemble.prediction_name,
        "scopes": {
            scope: {
                name: _figures(probabilities[name], labels, rois, spacings, thresholds[name], card, scope)
                for name in names
            }
            for scope in scopes
        },
        "diversity": {
            **_mask_diversity(probabilities, labels, rois, thresholds, ensemble.n_base),
            "cka": {tap: _or_none(mean(values)) for tap, values in cka.items()},
        },
    }
    if card.objects is not None and len(objects) == len(labels):
        chosen = ensemble.prediction_name
        found = [separate_objects(image[0], thresholds[chosen], card.objects) for image in probabilities[chosen]]
        figures["objects"] = object_figures(found, objects)
    return Scored(figures, probabilities, labels, rois, thresholds)


def _require_memory(probabilities: Mapping[str, Sequence[np.ndarray]], images: int, sets: int) -> None:
    """After the first image: says at once what the system would say by killing the process hours later."""
    firsts = [view[0] for view in probabilities.values()]
    # Of one view at a time float32 copies are made, of all images and again of all their pixels in a row.
    needed = images * (sets * sum(first.nbytes for first in firsts) + 8 * max(first.size for first in firsts))
    free = free_memory()
    if free is not None and needed > free:
        raise DataError(
            f"scoring {images} images like the first one takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            f"are free; score fewer images at a time{', or with --no-full-precision' if sets > 1 else ''}"
        )


def _figures(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    spacings: Sequence[tuple[float, ...] | None],
    threshold: float,
    card: ModelCard,
    scope: str,
) -> dict[str, Any]:
    probabilities = [probability.astype(np.float32, copy=False) for probability in probabilities]
    surface = not card.tubular
    spacing = spacings if all(steps is not None for steps in spacings) else None
    if card.n_outputs == 1:
        flat = [probability[0] for probability in probabilities]
        tubular = card.tubular and card.dims == 2
        rule = card.cleaning
        clean = None if rule is None else partial(clean_mask, rule=rule)
        return binary_figures(
            flat, labels, rois, threshold, scope=scope, tubular=tubular, surface=surface, spacing=spacing, clean=clean
        )
    return multiclass_figures(
        probabilities, labels, rois, classes=card.classes, scope=scope, surface=surface, spacing=spacing
    )


def _or_none(value: float) -> float | None:
    """JSON has no NaN: what is undefined is null."""
    return None if math.isnan(value) else value


def _mask_diversity(
    probabilities: Mapping[str, Sequence[np.ndarray]],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    thresholds: Mapping[str, float],
    n_base: int,
) -> dict[str, float | None]:
    """Disagreement and Q-statistic of the base learners' masks, over all pixels that count; without them, undefined."""
    if not n_base:
        return {"disagreement": None, "q_statistic": None}
    inside = [np.ones_like(label, bool) if roi is None else roi for label, roi in zip(labels, rois, strict=True)]
    masks = []
    for k in range(1, n_base + 1):
        parts = []
        for probability, roi in zip(probabilities[f"base_{k}"], inside, strict=True):
            binary = len(probability) == 1
            mask = probability[0] > thresholds[f"base_{k}"] if binary else probability.argmax(0)
            parts.append(mask[roi])
        masks.append(np.concatenate(parts))
    truth = np.concatenate([label[roi] for label, roi in zip(labels, inside, strict=True)])
    return {
        "disagreement": _or_none(float(pairwise_disagreement(masks))),
        "q_statistic": _or_none(float(q_statistic(masks, truth))),
    }


@torch.no_grad()
def _feature_similarity(ensemble: DeepEnsemble, card: ModelCard, sample: Sample) -> dict[str, float]:
    """Mean pairwise CKA of the base learners' features at each tap, on the centre of one image as they see it."""
    if not ensemble.n_base:
        return {}
    seen = card.resolution.size(sample.image.shape[1:], sample.spacing)
    image = torch.from_numpy(as_seen(sample.image.numpy(), seen, card.standardize))
    size = 256 if image.ndim == 3 else 64  # enough pixels for CKA, at a small part of the whole image's cost
    starts = [max(0, (extent - size) // 2) for extent in image.shape[1:]]
    middle = (slice(None), *(slice(start, start + size) for start in starts))
    part = image[middle][None]
    features = ensemble(part.to(ensemble.input_scale.device)).features
    similarity = {}
    for tap, learners in features.items():
        pairs = [
            float(linear_cka(learners[i].float().cpu(), learners[j].float().cpu()))
            for i in range(len(learners))
            for j in range(i)
        ]
        similarity[tap] = mean(pairs)
    return similarity
