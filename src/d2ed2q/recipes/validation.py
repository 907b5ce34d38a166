"""What is chosen on validation images: the best epoch, the prediction and the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from d2ed2q.data import Sample
from d2ed2q.deploy.objects import ObjectRule, choose_object_rule
from d2ed2q.ensemble import DeepEnsemble, prediction_names, views
from d2ed2q.metrics import Ranking
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.run_folder import ModelCard

__all__ = ["choose_objects", "decide", "pooled_dice", "pooled_predictions", "validation_figures"]


def pooled_predictions(
    predict: Callable[[Sample], Tensor], samples: Sequence[Sample]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The N pixels of all images that count.

    Args:
        predict: of a sample, every learner's probabilities ``(K+1)×C×*spatial``, the meta learner first.
        samples: with labels.

    Returns:
        tuple: of each view their probabilities, ``C×N``; and their labels, ``N``.
    """
    by_view: dict[str, list[np.ndarray]] = {}
    labels = []
    for sample in samples:
        assert sample.label is not None  # training cases have labels
        inside = torch.ones_like(sample.label, dtype=torch.bool) if sample.roi is None else sample.roi
        for name, view in views(predict(sample)).items():
            by_view.setdefault(name, []).append(view[:, inside].numpy())
        labels.append(sample.label[inside].numpy())
    pooled = {name: np.concatenate(parts, axis=1) for name, parts in by_view.items()}
    return pooled, np.concatenate(labels)


def _predictions(
    ensemble: DeepEnsemble, card: ModelCard, samples: Sequence[Sample], tta: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return pooled_predictions(lambda sample: predict_sample(ensemble, card, sample, tta), samples)


def pooled_dice(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """Dice of all pixels pooled; of several classes the mean over the foreground, at the most probable class.

    Args:
        probabilities: ``C×N``.
        labels: ``N``, class numbers.
        threshold: of a binary task.
    """
    if len(probabilities) > 1:
        return _pooled_dice(probabilities, labels)
    found, true = probabilities[0] > threshold, labels > 0
    total = found.sum() + true.sum()
    return float(2 * (found & true).sum() / total) if total else 1.0


def _pooled_dice(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean Dice of the foreground classes at the most probable class; ``C×N`` and ``N``."""
    predicted = probabilities.argmax(0)
    scores = []
    for index in range(1, len(probabilities)):
        found, true = predicted == index, labels == index
        total = found.sum() + true.sum()
        scores.append(2 * (found & true).sum() / total if total else 1.0)
    return float(np.mean(scores))


def validation_figures(ensemble: DeepEnsemble, card: ModelCard, samples: Sequence[Sample]) -> dict[str, float]:
    """Figures of the views that may become the prediction, to follow a training by; no test-time augmentation.

    Args:
        ensemble: the model.
        card: what it is.
        samples: validation images with labels.

    Returns:
        dict: for ``meta`` and ``ensemble`` (or ``network``) the Dice (``meta_dice``; binary tasks: at its best
        threshold) and, for binary tasks, the AUC; the better of the two as ``dice`` and ``auc``; and ``score``, which
        decides.
    """
    by_view, truth = _predictions(ensemble, card, samples, "none")
    figures: dict[str, float] = {}
    candidates = prediction_names(ensemble.n_base)
    for name in candidates:
        probabilities = by_view[name]
        if len(probabilities) == 1:
            ranking = Ranking(probabilities[0], truth)
            figures[f"{name}_auc"] = ranking.roc_auc()
            figures[f"{name}_dice"] = ranking.best_dice_threshold()[1]
        else:
            figures[f"{name}_dice"] = _pooled_dice(probabilities, truth)
    # The better of the two possible predictions; AUC where there is one, because it needs no threshold.
    for figure in ("auc", "dice"):
        found = [figures[f"{name}_{figure}"] for name in candidates if f"{name}_{figure}" in figures]
        if found:
            figures[figure] = max(found)
    figures["score"] = figures.get("auc", figures["dice"])
    return figures


def decide(ensemble: DeepEnsemble, card: ModelCard, samples: Sequence[Sample]) -> dict[str, float]:
    """Chooses prediction and thresholds on validation images and stores them with the weights.

    Returns:
        dict: every view's pooled Dice on the validation images.
    """
    by_view, truth = _predictions(ensemble, card, samples, card.tta)
    thresholds, dice = {}, {}
    for name, probabilities in by_view.items():
        if len(probabilities) == 1:
            thresholds[name], dice[name] = Ranking(probabilities[0], truth).best_dice_threshold()
        else:
            thresholds[name], dice[name] = 0.5, _pooled_dice(probabilities, truth)
    ensemble.decide(max(prediction_names(ensemble.n_base), key=lambda name: dice[name]), thresholds)
    return dice


def choose_objects(ensemble: DeepEnsemble, card: ModelCard, samples: Sequence[Sample]) -> ObjectRule | None:
    """Chooses on validation images how the prediction's mask is cut into objects; None where no object is told apart.

    Args:
        ensemble: with prediction and thresholds decided.
        card: what it is.
        samples: validation images.
    """
    numbered = [sample for sample in samples if sample.objects is not None and bool(sample.objects.any())]
    if not numbered or card.n_outputs > 1:
        return None
    view = ensemble.prediction_name
    probabilities = [views(predict_sample(ensemble, card, sample))[view][0].numpy() for sample in numbered]
    truth = [sample.objects.numpy() for sample in numbered if sample.objects is not None]
    return choose_object_rule(probabilities, truth, ensemble.threshold_of(view))
