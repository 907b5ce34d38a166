"""What is chosen on validation images: the best epoch, the prediction and the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d2ed2q.data import Sample
from d2ed2q.deploy.cleaning import MaskRule, choose_mask_rule
from d2ed2q.deploy.objects import ObjectRule, choose_object_rule
from d2ed2q.ensemble import DeepEnsemble, prediction_names, view_names, views
from d2ed2q.metrics import Ranking
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.run_folder import ModelCard
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = [
    "TELLING",
    "Decided",
    "choose_rules",
    "decide",
    "given_prediction",
    "keeps_best",
    "pooled_dice",
    "pooled_predictions",
    "validation_figures",
]

TELLING = 20  # validation images that can tell good thresholds, weights and views from lucky ones


def keeps_best(settings: TrainSettings, validation: int) -> bool:
    """Whether phases end with their best validated weights.

    A few images take lucky weights for good ones, and the last of a cosine schedule are no worse than any. Images that
    are trained on take the latest for the best.

    Args:
        settings: of the training.
        validation: how many images validate.
    """
    few = validation < TELLING and settings.schedule == "cosine"
    telling = not few and settings.training_images != "all"
    return settings.keep == "best" or (settings.keep == "auto" and telling)


def given_prediction(settings: TrainSettings, validation: int) -> str | None:
    """The view that is the prediction whatever validation images say; None where the better one is.

    A few images take chance for a difference, and so do those that are trained on; on images like those learnt from the
    meta learner is hardly ever worse.

    Args:
        settings: of the training.
        validation: how many images validate.
    """
    if settings.prediction != "auto":
        return None if settings.prediction == "better" else settings.prediction
    if not settings.learners or (validation >= TELLING and settings.training_images != "all"):
        return None
    return "meta" if settings.fuse else "ensemble"


def pooled_predictions(
    predict: Callable[[Sample], Tensor], samples: Iterable[Sample], names: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The N pixels of all images that count.

    Args:
        predict: of a sample, every learner's probabilities ``(K+1)×C×*spatial``, the meta learner first.
        samples: with labels.
        names: of the views that are wanted; None takes all.

    Returns:
        tuple: of each view their probabilities, ``C×N``; and their labels, ``N``.
    """
    by_view: dict[str, list[np.ndarray]] = {}
    labels = []
    for sample in samples:
        truth, inside = _label(sample)
        for name, view in views(predict(sample)).items():
            if names is None or name in names:
                by_view.setdefault(name, []).append(view[:, inside].numpy())
        labels.append(truth.numpy())
    # One view after the other, so that the parts of only one are there twice.
    pooled = {name: np.concatenate(by_view.pop(name), axis=1) for name in list(by_view)}
    return pooled, np.concatenate(labels) if labels else np.zeros(0, np.int64)


def _label(sample: Sample) -> tuple[Tensor, Tensor]:
    """The classes of the pixels that count, and where these are."""
    assert sample.label is not None  # training cases have labels
    inside = torch.ones_like(sample.label, dtype=torch.bool) if sample.roi is None else sample.roi
    return sample.label[inside], inside


def _class_dice(
    predict: Callable[[Sample], Tensor], samples: Sequence[Sample], names: Sequence[str]
) -> dict[str, float]:
    """Of each view the pooled Dice of several classes; counts are added up image by image, nothing else is kept."""
    counts: dict[str, np.ndarray] = {}
    for sample in samples:
        truth, inside = _label(sample)
        for name, view in views(predict(sample)).items():
            if name in names:
                found = _counts(view[:, inside].numpy(), truth.numpy())
                counts[name] = counts[name] + found if name in counts else found
    return {name: _dice_of(found) for name, found in counts.items()}


def pooled_dice(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """Dice of all pixels pooled; of several classes the mean over those of the foreground that are there.

    Of several classes the most probable one counts. A class without a true pixel tells nothing: a single wrong pixel
    would turn its Dice from 1 to 0.

    Args:
        probabilities: ``C×N``.
        labels: ``N``, class numbers.
        threshold: of a binary task.
    """
    if len(probabilities) > 1:
        return _dice_of(_counts(probabilities, labels))
    found, true = probabilities[0] > threshold, labels > 0
    total = found.sum() + true.sum()
    return float(2 * (found & true).sum() / total) if total else 1.0


def _counts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each class the pixels found, true and both, ``3×C``; of ``C×N`` and ``N``."""
    classes, predicted = len(probabilities), probabilities.argmax(0)
    right = predicted[predicted == labels]
    return np.stack([np.bincount(values, minlength=classes) for values in (predicted, labels, right)])


def _dice_of(counts: np.ndarray) -> float:
    """Mean Dice of the foreground classes that are there; without any 1 if none was found, else 0."""
    found, true, both = counts[:, 1:]
    present = true > 0
    if not present.any():
        return float(found.sum() == 0)
    return float((2 * both[present] / (found + true)[present]).mean())


def validation_figures(
    ensemble: DeepEnsemble, card: ModelCard, samples: Sequence[Sample], prediction: str | None = None
) -> dict[str, float]:
    """Figures of the views that may become the prediction, to follow a training by; no test-time augmentation.

    Args:
        ensemble: the model.
        card: what it is.
        samples: validation images with labels.
        prediction: the view that will predict; None where the better one will.

    Returns:
        dict: for ``meta`` and ``ensemble`` (or ``network``) the Dice (``meta_dice``; binary tasks: at its best
        threshold) and, for binary tasks, the AUC; those of the prediction, or the better of the two, as ``dice`` and
        ``auc``; and ``score``, which decides.
    """
    figures: dict[str, float] = {}
    candidates = prediction_names(ensemble.n_base)

    def predict(sample: Sample) -> Tensor:
        return predict_sample(ensemble, card, sample, "none")

    if card.n_outputs > 1:
        figures |= {f"{name}_dice": dice for name, dice in _class_dice(predict, samples, candidates).items()}
    else:
        by_view, truth = pooled_predictions(predict, samples, candidates)
        for name in candidates:
            ranking = Ranking(by_view.pop(name)[0], truth)
            figures[f"{name}_auc"] = ranking.roc_auc()
            figures[f"{name}_dice"] = ranking.best_dice_threshold()[1]
    # Where AUC is there, it decides, because it needs no threshold.
    counting = (prediction,) if prediction else candidates
    for figure in ("auc", "dice"):
        found = [figures[f"{name}_{figure}"] for name in counting if f"{name}_{figure}" in figures]
        if found:
            figures[figure] = max(found)
    figures["score"] = figures.get("auc", figures["dice"])
    return figures


@dataclass(frozen=True)
class Decided:
    """What was decided on validation images.

    Attributes:
        dice: every view's pooled Dice on validation images, at its threshold.
        threshold: of the prediction.
        probabilities: of every image the prediction's, of the spatial shape, 0 outside its region; of several classes
            none.
    """

    dice: dict[str, float]
    threshold: float
    probabilities: list[np.ndarray]


def decide(
    ensemble: DeepEnsemble,
    card: ModelCard,
    samples: Sequence[Sample],
    also: Iterable[Sample] = (),
    prediction: str | None = None,
) -> Decided:
    """Chooses prediction and thresholds on validation images and stores them with the weights.

    Args:
        ensemble: the model.
        card: what it is.
        samples: validation images with labels.
        also: further images that thresholds, and nothing else, are chosen on; read one at a time.
        prediction: the view that is to predict; None takes the one of higher Dice on validation images.
    """
    names, candidates = view_names(ensemble.n_base), prediction_names(ensemble.n_base)
    thresholds: dict[str, float] = {}
    dice: dict[str, float] = {}
    kept: dict[str, np.ndarray] = {}

    def predict(sample: Sample) -> Tensor:
        return predict_sample(ensemble, card, sample, card.tta)

    if card.n_outputs > 1:
        dice, thresholds = _class_dice(predict, samples, names), dict.fromkeys(names, 0.5)
    else:
        by_view, truth = pooled_predictions(predict, samples)
        seen, seen_truth = pooled_predictions(predict, also)
        labels = np.concatenate([truth, seen_truth])
        for name in names:
            pixels = by_view.pop(name)[0]
            every = np.concatenate([pixels, *seen.pop(name, ())])
            thresholds[name], _ = Ranking(every, labels).best_dice_threshold()
            dice[name] = pooled_dice(pixels[None], truth, thresholds[name])
            if name in candidates:
                kept[name] = pixels
    chosen = prediction or max(candidates, key=lambda name: dice[name])
    ensemble.decide(chosen, thresholds)
    return Decided(dice, thresholds[chosen], _maps(kept.pop(chosen), samples) if kept else [])


def _maps(pixels: np.ndarray, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Puts pooled pixels back into their places."""
    maps = []
    for sample in samples:
        inside = _label(sample)[1].numpy()
        probability = np.zeros(inside.shape, pixels.dtype)
        probability[inside], pixels = np.split(pixels, [int(inside.sum())])
        maps.append(probability)
    return maps


def choose_rules(
    decided: Decided, samples: Sequence[Sample], clean: bool = True
) -> tuple[ObjectRule | None, MaskRule | None]:
    """Chooses on validation images what is done to the prediction's mask after the threshold.

    Args:
        decided: by :func:`decide`, on the same images.
        samples: validation images.
        clean: whether specks may be filled or dropped.

    Returns:
        tuple: how the mask is cut into objects, where they are told apart; and elsewhere which specks are filled or
        dropped. None for neither.
    """
    if not decided.probabilities:
        return None, None
    numbered = [
        (probability, sample.objects.numpy())
        for probability, sample in zip(decided.probabilities, samples, strict=True)
        if sample.objects is not None and bool(sample.objects.any())
    ]
    if numbered:
        probabilities, objects = zip(*numbered, strict=True)
        return choose_object_rule(probabilities, objects, decided.threshold), None
    if not clean:
        return None, None
    masks = [probability > decided.threshold for probability in decided.probabilities]
    labels = [sample.label.numpy() > 0 for sample in samples if sample.label is not None]
    regions = [None if sample.roi is None else sample.roi.numpy() for sample in samples]
    return None, choose_mask_rule(masks, labels, regions)
