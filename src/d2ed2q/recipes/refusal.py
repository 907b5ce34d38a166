"""From which doubt on an image should not be segmented: found on validation images and on spoilt copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from d2ed2q.data import Sample, evenly_spread
from d2ed2q.deploy.manifest import Refusal
from d2ed2q.deploy.prediction import Prediction

__all__ = ["find_refusal", "separating_bound", "spoilt"]

_IMAGES = 16
_BLURS = (2.0, 4.0, 8.0)
_LIGHTS = (0.5, 0.25, 0.1)
_USABLE = 0.8
_KEPT = 0.95
_FEW = 2  # of two images twice the doubt is kept: of a test image of CHASE_DB1 it is nearly twice that of validation


def spoilt(image: np.ndarray, blur_scale: Sequence[float]) -> Iterator[np.ndarray]:
    """Copies of an image that are harder and harder to segment: three blurred ones, three dark ones.

    Args:
        image: float32 ``C×*spatial`` in [0, 1].
        blur_scale: along each spatial axis, pixels of the image for one pixel that the model sees; the blurs have
            standard deviations of 2, 4 and 8 of the latter.
    """
    for sigma in _BLURS:
        yield gaussian_filter(image, (0.0, *(sigma * scale for scale in blur_scale)))
    for light in _LIGHTS:
        yield image * np.float32(light)


def find_refusal(
    predict: Callable[[np.ndarray, Sample], Prediction],
    blur_scale: Callable[[Sample], Sequence[float]],
    samples: Sequence[Sample],
) -> Refusal | None:
    """Finds the doubt above which masks are more often unusable than not.

    An image counts as usable where its mask's Dice (of all foreground) is at least 0.8 of the median of untouched ones.
    Of all bounds that keep 95 % of the untouched usable images, the one is taken with the best mean of two shares:
    unusable images refused, and usable ones kept. The fewer untouched ones there are, the less they say of others: of N
    of them, ``1 + 2/N`` times the doubt is to be kept.

    Args:
        predict: segments an image (the first argument) that replaces the one of a sample.
        blur_scale: of a sample, see :func:`spoilt`.
        samples: validation images; those without foreground tell nothing here, and at most 16 are used.

    Returns:
        Refusal | None: None where there is nothing to tell apart, because every image, or none, is usable, and where no
            bound keeps what is to be kept.
    """
    known = [sample for sample in samples if sample.label is not None and bool((_kept(sample) & _truth(sample)).any())]
    doubts: list[float] = []
    dices: list[float] = []
    untouched: list[bool] = []
    for sample in evenly_spread(known, _IMAGES):
        image = sample.image.numpy()
        for index, picture in enumerate((image, *spoilt(image, blur_scale(sample)))):
            prediction = predict(np.ascontiguousarray(picture), sample)
            mask, truth = (prediction.mask > 0) & _kept(sample), _truth(sample) & _kept(sample)
            doubts.append(prediction.doubt)
            dices.append(float(2 * (mask & truth).sum() / (mask.sum() + truth.sum())))
            untouched.append(index == 0)
    if not doubts:
        return None
    doubt, dice, first = np.array(doubts), np.array(dices), np.array(untouched)
    least = _USABLE * float(np.median(dice[first]))
    usable = dice >= least
    bound = separating_bound(doubt, usable, first & usable, room=1 + _FEW / max(int((first & usable).sum()), 1))
    if bound is None:
        return None
    return Refusal(
        doubt=bound,
        dice=least,
        images=len(doubt),
        refused=float((doubt[~usable] > bound).mean()),
        kept=float((doubt[usable] <= bound).mean()),
    )


def separating_bound(doubt: np.ndarray, usable: np.ndarray, protected: np.ndarray, room: float = 1.0) -> float | None:
    """The bound with the best mean of the share of unusable images above it and of usable ones not above it.

    Args:
        doubt: in [0, 1], ``N``.
        usable: bool, ``N``.
        protected: bool, ``N``; 95 % of these stay at or below the bound.
        room: they would with so many times their doubt; at least 1.

    Returns:
        float | None: half-way between two neighbouring doubts; None where all images, or none, are usable, where all
            doubts are the same, and where no bound keeps what is protected.
    """
    if usable.all() or not usable.any():
        return None
    values = np.unique(doubt)
    bounds = (values[:-1] + values[1:]) / 2
    if protected.any():
        bounds = bounds[[(doubt[protected] * room <= bound).mean() >= _KEPT for bound in bounds]]
    if not len(bounds):
        return None
    scores = [(doubt[~usable] > bound).mean() + (doubt[usable] <= bound).mean() for bound in bounds]
    return float(bounds[int(np.argmax(scores))])


def _truth(sample: Sample) -> np.ndarray:
    assert sample.label is not None  # only labelled images are asked
    truth: np.ndarray = sample.label.numpy() > 0
    return truth


def _kept(sample: Sample) -> np.ndarray:
    if sample.roi is None:
        return np.ones(sample.image.shape[1:], bool)
    kept: np.ndarray = sample.roi.numpy()
    return kept
