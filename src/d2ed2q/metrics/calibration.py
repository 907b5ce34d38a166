"""Whether a probability means what it says: calibration error, proper scores, and risk against coverage.

Every function takes binary probabilities (``prob`` has the labels' shape: the probability of class 1) or multi-class
ones (``prob`` is ``C×…`` before the labels' shape; calibration then looks at the most probable class).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import digamma

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.checks import as_binary, require_classes, require_probabilities
from d2ed2q.metrics.ranking import Ranking

__all__ = [
    "ReliabilityCurve",
    "RiskCoverage",
    "brier",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_curve",
    "risk_coverage",
]


class ReliabilityCurve(NamedTuple):
    """Predicted against observed frequency, one entry for each bin that is not empty."""

    predicted: np.ndarray
    """Mean probability in the bin, float64, rising."""
    observed: np.ndarray
    """Fraction of the bin's pixels that are of the class, float64."""
    pixels: np.ndarray
    """Pixels in the bin, int64."""


class RiskCoverage(NamedTuple):
    """Error rate among the most confident pixels, against the share of pixels kept."""

    coverage: np.ndarray
    """Share of pixels kept, most confident first; float64, rising to 1."""
    risk: np.ndarray
    """Error rate among them, float64 in [0, 1]."""
    aurc: float
    """Area under the whole, unthinned curve, in [0, 1]; lower is better; NaN without pixels."""


def reliability_curve(prob: np.ndarray, labels: np.ndarray, bins: int = 15) -> ReliabilityCurve:
    """Predicted against observed frequency in bins of equal mass.

    Bins are cut at quantiles of the probabilities, and equal probabilities share a bin: with many ties (a background
    of exact zeros) there are fewer, unequal bins, but never one that depends on the order of the pixels.

    Args:
        prob: in [0, 1]; the labels' shape (binary) or ``C×…`` before it (multi-class, most probable class).
        labels: 0 and 1, or class numbers 0…C−1.
        bins: how many at most.

    Returns:
        ReliabilityCurve: by rising probability.

    Raises:
        ConfigError: ``bins`` is less than 1.
        DataError: shapes do not fit, or values are out of range.
    """
    if bins < 1:
        raise ConfigError(f"bins must be at least 1, got {bins}")
    confidence, outcome = _confidence(prob, labels)
    n = confidence.size
    if not n:
        return ReliabilityCurve(np.empty(0), np.empty(0), np.empty(0, np.int64))
    cuts = np.arange(1, bins) * n // bins
    edges = np.unique(np.sort(confidence)[cuts])
    index = np.searchsorted(edges, confidence, side="right")
    count = np.bincount(index, minlength=bins)
    used = count > 0
    predicted = np.bincount(index, weights=confidence, minlength=bins)[used] / count[used]
    observed = np.bincount(index, weights=outcome, minlength=bins)[used] / count[used]
    return ReliabilityCurve(predicted, observed, count[used])


def expected_calibration_error(prob: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass: Σ n_b/n · |observed_b − predicted_b|.

    Equal-mass bins (Nguyen & O'Connor 2015), because segmentation probabilities crowd near 0 and 1, where bins of
    equal width would hold nearly all pixels.

    Args:
        prob: see :func:`reliability_curve`.
        labels: see :func:`reliability_curve`.
        bins: how many at most.

    Returns:
        float: in [0, 1]; NaN without pixels.

    Raises:
        ConfigError: ``bins`` is less than 1.
        DataError: shapes do not fit, or values are out of range.
    """
    curve = reliability_curve(prob, labels, bins)
    if not curve.pixels.size:
        return float("nan")
    return float((curve.pixels * np.abs(curve.observed - curve.predicted)).sum() / curve.pixels.sum())


def brier(prob: np.ndarray, labels: np.ndarray) -> float:
    """Brier score.

    Binary: the mean of (p − y)², in [0, 1]. Multi-class: the mean of Σ_c (p_c − y_c)², in [0, 2] (Brier 1950); for
    two classes that is twice the binary form.

    Args:
        prob: in [0, 1]; the labels' shape (binary) or ``C×…`` before it.
        labels: 0 and 1, or class numbers 0…C−1.

    Returns:
        float: lower is better; NaN without pixels.

    Raises:
        DataError: shapes do not fit, or values are out of range.
    """
    prob, labels = _checked(prob, labels)
    if not labels.size:
        return float("nan")
    if prob.ndim == labels.ndim:
        return float(np.square(prob - labels).mean(dtype=np.float64))
    true = _of_class(prob, labels)
    # Σ_c (p_c − y_c)² = Σ_c p_c² − 2·p_true + 1, without a one-hot copy.
    return float((np.square(prob).sum(0, dtype=np.float64) - 2.0 * true + 1.0).mean())


def negative_log_likelihood(prob: np.ndarray, labels: np.ndarray, eps: float = 1e-7) -> float:
    """Mean negative log-likelihood of the labels, natural logarithm.

    Args:
        prob: in [0, 1]; the labels' shape (binary) or ``C×…`` before it.
        labels: 0 and 1, or class numbers 0…C−1.
        eps: the true class's probability is raised to at least this, so that one certain error costs
            −ln 1e-7 ≈ 16.1 and not infinity.

    Returns:
        float: in nats a pixel, lower is better; NaN without pixels.

    Raises:
        ConfigError: ``eps`` is not between 0 and 1.
        DataError: shapes do not fit, or values are out of range.
    """
    if not 0 < eps < 1:
        raise ConfigError(f"eps must lie between 0 and 1, got {eps}")
    prob, labels = _checked(prob, labels)
    if not labels.size:
        return float("nan")
    true = np.where(labels, prob, 1 - prob) if prob.ndim == labels.ndim else _of_class(prob, labels)
    return -float(np.log(np.maximum(true, true.dtype.type(eps))).mean(dtype=np.float64))


def risk_coverage(confidence: np.ndarray, correct: np.ndarray, points: int = 512) -> RiskCoverage:
    """Error rate among the k most confident pixels, for k = 1…n (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017).

    Pixels of equal confidence count in every order alike: within them the errors are spread evenly, so the result
    does not depend on the order of the pixels.

    Args:
        confidence: any shape, larger is more certain.
        correct: same shape, whether the prediction is right.
        points: of the curve at most, at evenly spread coverage; the area is exact whatever their number.

    Returns:
        RiskCoverage: the thinned curve, and AURC = (1/n)·Σ_k risk(k).

    Raises:
        ConfigError: fewer than two points.
        DataError: shapes differ, a confidence is NaN or infinite, or ``correct`` holds anything but 0 and 1.
    """
    if points < 2:
        raise ConfigError(f"a curve needs at least 2 points, got points={points}")
    correct = as_binary(correct, "correct")
    # Errors are the ranking's positives: the risk's sum changes only where one is taken in.
    ranking = Ranking(confidence, ~correct)
    n = ranking.positives + ranking.negatives
    if not n:
        return RiskCoverage(np.empty(0), np.empty(0), float("nan"))
    errors = ranking.true_positives
    ties = np.diff(errors, prepend=0)
    start = errors - ties + ranking.false_positives_above  # pixels strictly more confident than this threshold
    end = errors + ranking.false_positives
    # An error at rank r adds 1/k to risk(k) for all k ≥ r: H_n − H_{r−1} in all, here in the mean over r = start+1…end.
    skipped = (_harmonic_sum(end) - _harmonic_sum(start)) / (end - start)
    aurc = float((ties * (_harmonic(np.array(n)) - skipped)).sum() / n)
    kept = np.unique(np.linspace(1, n, points).round().astype(np.int64))
    knots = np.stack((start, end), axis=1).reshape(-1)
    heights = np.stack((errors - ties, errors), axis=1).reshape(-1)
    expected = np.interp(kept, np.append(0, knots), np.append(0, heights))
    return RiskCoverage(kept / n, expected / kept, aurc)


def _harmonic(m: np.ndarray) -> np.ndarray:
    """H_m = 1 + 1/2 + … + 1/m."""
    result: np.ndarray = digamma(m + 1.0) + np.euler_gamma
    return result


def _harmonic_sum(m: np.ndarray) -> np.ndarray:
    """H_0 + H_1 + … + H_{m−1} = m·(H_m − 1)."""
    return m * (_harmonic(m) - 1.0)


def _checked(prob: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prob, labels = np.asarray(prob), np.asarray(labels)
    if not np.issubdtype(prob.dtype, np.floating):
        prob = prob.astype(np.float64)
    require_probabilities(prob, "prob")
    if prob.shape == labels.shape:
        return prob, as_binary(labels, "labels")
    if prob.shape[1:] != labels.shape or prob.ndim != labels.ndim + 1:
        raise DataError(
            f"prob has shape {prob.shape}, which is neither the labels' {labels.shape} (binary) "
            f"nor classes before it (multi-class)"
        )
    require_classes(labels, len(prob), "labels")
    return prob, labels


def _of_class(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each pixel's labelled class: ``C×…`` and ``…`` to ``…``."""
    true: np.ndarray = np.take_along_axis(prob, labels[None].astype(np.int64), axis=0)[0]
    return true


def _confidence(prob: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat probability of the class that is looked at, and whether the pixel is of that class."""
    prob, labels = _checked(prob, labels)
    if prob.ndim == labels.ndim:
        return prob.reshape(-1), labels.reshape(-1)
    return prob.max(0).reshape(-1), (prob.argmax(0) == labels).reshape(-1)
