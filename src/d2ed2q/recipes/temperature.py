"""How sure a model may be: the temperature that makes its probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from d2ed2q.deploy.prediction import calibrated

__all__ = ["fit_temperature"]

_RANGE = (0.2, 5.0)
_SMALLEST = 1e-7
_PIXELS = 2_000_000

Pixels = tuple[np.ndarray, np.ndarray]
"""Probabilities ``C×N`` (C = 1 is the foreground of a binary task), and labels ``N``, class numbers."""


def fit_temperature(images: Sequence[Pixels]) -> float:
    """The temperature T of least negative log-likelihood (Guo et al., 2017), from 0.2 to 5, or 1 where none helps.

    Pixels of one image are of one mind: a few validation images may all be harder, or easier, than what comes after.
    So each image in turn is left out, and T is found on the others; unless that makes the images left out more likely
    in sum, nothing is scaled. A single image says nothing of others.

    Args:
        images: of each validation image the pixels that count.
    """
    images = [image for image in images if len(image[1])]
    step = max(1, sum(len(labels) for _, labels in images) // _PIXELS)
    images = [(probabilities[:, ::step], labels[::step]) for probabilities, labels in images]
    if len(images) < 2:
        return 1.0
    gained = 0.0
    for index, left_out in enumerate(images):
        others = [image for position, image in enumerate(images) if position != index]
        gained += _loss([left_out], 1.0) - _loss([left_out], _best(others))
    return _best(images) if gained > 0 else 1.0


def _best(images: Sequence[Pixels]) -> float:
    found = minimize_scalar(
        lambda log_temperature: _loss(images, float(np.exp(log_temperature))),
        bounds=tuple(np.log(_RANGE)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x))


def _loss(images: Sequence[Pixels], temperature: float) -> float:
    """Negative log-likelihood of all pixels, summed."""
    total = 0.0
    for probabilities, labels in images:
        p = calibrated(probabilities, temperature)
        own = np.where(labels > 0, p[0], 1 - p[0]) if len(p) == 1 else np.take_along_axis(p, labels[None], 0)[0]
        total -= float(np.log(np.maximum(own, _SMALLEST)).sum())
    return total
