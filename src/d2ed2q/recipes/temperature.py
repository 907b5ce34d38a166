"""How sure a model may be: the temperature that makes its probabilities mean what they say."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from d2ed2q.deploy.prediction import calibrated

__all__ = ["fit_temperature"]

_RANGE = (0.2, 5.0)
_SMALLEST = 1e-7
_PIXELS = 2_000_000


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T of least negative log-likelihood (Guo et al., 2017), from 0.2 to 5.

    Args:
        probabilities: ``C×N`` of validation pixels; C = 1 is the foreground of a binary task.
        labels: ``N``, class numbers.
    """
    step = max(1, len(labels) // _PIXELS)
    probabilities, labels = probabilities[:, ::step], labels[::step]

    def loss(log_temperature: float) -> float:
        p = calibrated(probabilities, float(np.exp(log_temperature)))
        own = np.where(labels > 0, p[0], 1 - p[0]) if len(p) == 1 else np.take_along_axis(p, labels[None], 0)[0]
        return float(-np.log(np.maximum(own, _SMALLEST)).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))
