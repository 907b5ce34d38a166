"""Score a trained run on a dataset, in full precision and few bits, and write its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2ed2q.data import Case, Dataset, checksums, open_dataset
from d2ed2q.ensemble import DeepEnsemble, view_names, views
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import binary_figures, linear_cka, multiclass_figures, pairwise_disagreement, q_statistic
from d2ed2q.recipes.inference import predict_probabilities
from d2ed2q.recipes.run_folder import ModelCard, RunFolder, environment
from d2ed2q.recipes.settings import EvaluateSettings, TrainSettings
from d2ed2q.recipes.config import settings_from

__all__ = ["Scored", "evaluate", "score"]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Predictions on a list of images, kept to draw from, and the figures made of them.

    Attributes:
        figures: ``{"prediction", "scopes", "diversity"}``, ready for JSON.
        probabilities: for every view, for every image, float32 ``C×H×W``.
        labels: for every image, int64 ``H×W``.
        rois: for every image, bool ``H×W`` or None.
        thresholds: of every view.
    """

    figures: dict[str, Any]
    probabilities: Mapping[str, Sequence[np.ndarray]]
    labels: Sequence[np.ndarray]
    rois: Sequence[np.ndarray | None]
    thresholds: Mapping[str, float]


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Scores a run and writes ``evaluation.json`` and ``report.html`` into its folder.

    Returns:
        dict: the content of ``evaluation.json``.

    Raises:
        RunFolderError: the run has not finished.
        CheckpointError: its weights cannot be used.
        DataError: the images cannot be used, or were trained on.
    """
    torch.set_flush_denormal(True)
    run = RunFolder(settings.run)
    card = run.read_card()
    dataset, cases = _cases(run, settings)
    if dataset.channels != card.in_channels:
        raise DataError(
            f"{dataset.root} has images of {dataset.channels} channels, but the model takes {card.in_channels}"
        )
    tta = settings.tta or card.tta
    ensemble = run.load()
    few_bit = score(ensemble, card, dataset, cases, tta)
    full = score(run.load(full_precision=True), card, dataset, cases, tta) if settings.full_precision else None
    result = {
        "run": str(run.path),
        "dataset": {"name": dataset.name, "root": str(dataset.root), "split": settings.split},
        "images": [case.id for case in cases],
        "tta": tta,
        **few_bit.figures,
        "full_precision": full.figures if full is not None else None,
        "environment": environment(),
    }
    run.write_json(run.evaluation, result)
    if settings.json is not None:
        run.write_json(settings.json, result)
    from d2ed2q.recipes.report import write_run_report  # matplotlib is slow to import

    write_run_report(run, card, ensemble, dataset, cases, few_bit, full, result)
    return result


def _cases(run: RunFolder, settings: EvaluateSettings) -> tuple[Dataset, Sequence[Case]]:
    recorded = run.read_json(run.data)
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    root = settings.data or trained.data
    same_place = settings.data is None or Path(settings.data).resolve() == Path(trained.data).resolve()
    name = trained.dataset if same_place and settings.dataset == "auto" else settings.dataset
    dataset = open_dataset(root, name)
    everything = {case.id: case for case in (*dataset.train, *dataset.test)}
    if settings.split == "validation":
        missing = [id for id in recorded["splits"]["validation"] if id not in everything]
        if missing:
            raise DataError(f"{root} lacks the validation image {missing[0]} of this run; pass the data it was trained on")
        chosen: Sequence[Case] = [everything[id] for id in recorded["splits"]["validation"]]
    else:
        chosen = dataset.test or tuple(everything.values())
        seen = {digest for split in ("train", "validation") for digest in _digests(recorded, split)}
        known = [id for id, digest in checksums(chosen).items() if digest in seen]
        if known:
            raise DataError(
                f"{len(known)} of {len(chosen)} images at {root} were used in training ({known[0]} is one); "
                f"put unseen images into a test/ subfolder, or pass --split validation"
            )
    labelled = [case for case in chosen if case.label is not None]
    if not labelled:
        raise DataError(f"no image at {root} has a mask to score against; use: d2ed2q predict")
    return dataset, labelled


def _digests(recorded: Mapping[str, Any], split: str) -> list[str]:
    return [recorded["sha256"][id] for id in recorded["splits"][split]]


def score(
    ensemble: DeepEnsemble, card: ModelCard, dataset: Dataset, cases: Sequence[Case], tta: str
) -> Scored:
    """Predicts every case at its own resolution and scores every view in every scope."""
    names = view_names(ensemble.n_base)
    probabilities: dict[str, list[np.ndarray]] = {name: [] for name in names}
    labels: list[np.ndarray] = []
    rois: list[np.ndarray | None] = []
    cka: dict[str, list[float]] = {}
    for case in cases:
        sample = dataset.read(case)
        assert sample.label is not None  # unlabelled cases are left out before
        for name, view in views(predict_probabilities(ensemble, sample.image, card.resize, tta)).items():
            probabilities[name].append(view.numpy())
        labels.append(sample.label.numpy())
        rois.append(None if sample.roi is None else sample.roi.numpy())
        for tap, value in _feature_similarity(ensemble, sample.image, card.resize).items():
            cka.setdefault(tap, []).append(value)
    thresholds = {name: ensemble.threshold_of(name) for name in names}
    scopes = ("fov", "whole") if any(roi is not None for roi in rois) else ("whole",)
    figures = {
        "prediction": ensemble.prediction_name,
        "scopes": {
            scope: {
                name: _figures(probabilities[name], labels, rois, thresholds[name], card, scope) for name in names
            }
            for scope in scopes
        },
        "diversity": {
            **_mask_diversity(probabilities, labels, rois, thresholds, ensemble.n_base),
            "cka": {tap: float(np.mean(values)) for tap, values in cka.items()},
        },
    }
    return Scored(figures, probabilities, labels, rois, thresholds)


def _figures(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    threshold: float,
    card: ModelCard,
    scope: str,
) -> dict[str, Any]:
    if card.n_outputs == 1:
        flat = [probability[0] for probability in probabilities]
        return binary_figures(
            flat, labels, rois, threshold, scope=scope, tubular=card.tubular, surface=not card.tubular
        )
    return multiclass_figures(
        probabilities, labels, rois, classes=card.classes, scope=scope, surface=not card.tubular
    )


def _mask_diversity(
    probabilities: Mapping[str, Sequence[np.ndarray]],
    labels: Sequence[np.ndarray],
    rois: Sequence[np.ndarray | None],
    thresholds: Mapping[str, float],
    n_base: int,
) -> dict[str, float]:
    """Disagreement and Q-statistic of the base learners' masks, over all pixels that count."""
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
        "disagreement": float(pairwise_disagreement(masks)),
        "q_statistic": float(q_statistic(masks, truth)),
    }


@torch.no_grad()
def _feature_similarity(
    ensemble: DeepEnsemble, image: torch.Tensor, resize: tuple[int, int] | None
) -> dict[str, float]:
    """Mean pairwise CKA of the base learners' features at each tap, on the centre of one image."""
    size = 256  # enough pixels for CKA, at a small part of the whole image's cost
    top, left = (max(0, (extent - size) // 2) for extent in image.shape[-2:])
    part = image[None, :, top : top + size, left : left + size]
    features = ensemble(part.to(ensemble.input_scale.device)).features
    similarity = {}
    for tap, learners in features.items():
        pairs = [
            float(linear_cka(learners[i].float().cpu(), learners[j].float().cpu()))
            for i in range(len(learners))
            for j in range(i)
        ]
        similarity[tap] = float(np.mean(pairs))
    return similarity
