"""Calibration figures against hand-worked cases and plain loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import (
    brier,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_curve,
    risk_coverage,
)

_VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
_PIXELS = st.lists(st.tuples(_VALUES, st.booleans()), min_size=1, max_size=30)


def _arrays(pixels: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value for value, _ in pixels], np.float32), np.array([flag for _, flag in pixels])


def _softmax(classes: int, pixels: int, seed: int = 0) -> np.ndarray:
    weights = np.random.default_rng(seed).random((classes, pixels)) ** 3
    softmax: np.ndarray = (weights / weights.sum(0)).astype(np.float32)
    return softmax


def test_bins_hold_equal_numbers_of_distinct_probabilities() -> None:
    prob = np.random.default_rng(0).permutation(np.linspace(0, 1, 300)).astype(np.float32)
    curve = reliability_curve(prob, prob > 0.5)
    assert curve.pixels.tolist() == [20] * 15
    np.testing.assert_allclose(curve.predicted, np.sort(prob).reshape(15, 20).mean(1), rtol=1e-6)
    assert curve.observed.tolist() == [0.0] * 7 + [0.5] + [1.0] * 7


def test_calibration_error_of_a_hand_worked_case() -> None:
    # Two bins: .1 .3 (mean .2, half are true) and .6 .8 (mean .7, all are true): (.3 + .3) / 2.
    prob, labels = np.array([0.1, 0.3, 0.6, 0.8]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(prob, labels, bins=2) == pytest.approx(0.3)


def test_equal_probabilities_share_a_bin() -> None:
    # Three quarters are exact zeros, one in three of them wrong; split over bins the order of pixels would matter.
    prob, labels = np.array([0.0] * 6 + [1.0] * 2), np.array([1, 1, 0, 0, 0, 0, 1, 1])
    curve = reliability_curve(prob, labels, bins=4)
    assert curve.pixels.tolist() == [6, 2]
    assert expected_calibration_error(prob, labels, bins=4) == pytest.approx(6 / 8 * 2 / 6)


@given(_PIXELS, st.randoms(use_true_random=False))
def test_calibration_error_does_not_depend_on_the_order_of_pixels(
    pixels: list[tuple[float, bool]], random: np.random.Generator
) -> None:
    shuffled = pixels.copy()
    random.shuffle(shuffled)
    assert expected_calibration_error(*_arrays(pixels)) == pytest.approx(
        expected_calibration_error(*_arrays(shuffled)), abs=1e-9
    )


@given(_PIXELS)
def test_one_bin_compares_the_means(pixels: list[tuple[float, bool]]) -> None:
    prob, labels = _arrays(pixels)
    expected = abs(prob.mean(dtype=np.float64) - labels.mean())
    assert expected_calibration_error(prob, labels, bins=1) == pytest.approx(expected, abs=1e-9)


def test_probabilities_that_mean_what_they_say_have_little_error() -> None:
    random = np.random.default_rng(3)
    prob = random.random(200_000)
    honest = random.random(200_000) < prob
    assert expected_calibration_error(prob, honest) < 0.01
    boasting = np.clip(3 * prob - 1, 0, 1)
    assert expected_calibration_error(boasting, honest) > 0.1


def test_multi_class_calibration_looks_at_the_most_probable_class() -> None:
    prob = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    curve = reliability_curve(prob, np.array([0, 1, 0]), bins=3)
    np.testing.assert_allclose(curve.predicted, [0.5, 0.6, 0.7])
    np.testing.assert_allclose(curve.observed, [1.0, 0.0, 1.0])


def test_brier_and_likelihood_of_a_hand_worked_case() -> None:
    prob, labels = np.array([[0.8, 0.4]]), np.array([[1, 1]])
    assert brier(prob, labels) == pytest.approx((0.2**2 + 0.6**2) / 2)
    assert negative_log_likelihood(prob, labels) == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)


@given(_PIXELS)
def test_two_classes_agree_with_the_binary_form(pixels: list[tuple[float, bool]]) -> None:
    prob, labels = _arrays(pixels)
    both = np.stack((1 - prob, prob))
    assert brier(both, labels.astype(int)) == pytest.approx(2 * brier(prob, labels), abs=1e-6)
    assert negative_log_likelihood(both, labels.astype(int)) == pytest.approx(negative_log_likelihood(prob, labels))


def test_multi_class_scores_agree_with_one_hot_labels() -> None:
    prob, labels = _softmax(4, 50).reshape(4, 5, 10), np.random.default_rng(1).integers(0, 4, (5, 10))
    one_hot = np.moveaxis(np.eye(4)[labels], -1, 0)
    assert brier(prob, labels) == pytest.approx(((prob - one_hot) ** 2).sum(0).mean())
    assert negative_log_likelihood(prob, labels) == pytest.approx(-np.log((prob * one_hot).sum(0)).mean())


def test_certain_errors_cost_a_finite_amount() -> None:
    assert negative_log_likelihood(np.array([0.0, 1.0], np.float32), np.array([1, 0])) == pytest.approx(
        -math.log(1e-7), rel=1e-6
    )
    assert negative_log_likelihood(np.array([0.0]), np.array([1]), eps=1e-3) == pytest.approx(-math.log(1e-3))


def _brute_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean over all orders of pixels that do not contradict the confidence."""
    areas = []
    for order in itertools.permutations(range(len(confidence))):
        ranked = confidence[list(order)]
        if (np.diff(ranked) <= 0).all():
            errors = np.cumsum(~correct[list(order)])
            areas.append(np.mean(errors / np.arange(1, len(confidence) + 1)))
    return float(np.mean(areas))


@given(st.lists(st.tuples(st.sampled_from([0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=5))
def test_aurc_is_the_mean_over_all_orders_of_tied_pixels(pixels: list[tuple[float, bool]]) -> None:
    confidence, correct = _arrays(pixels)
    assert risk_coverage(confidence, correct).aurc == pytest.approx(_brute_aurc(confidence, correct), abs=1e-12)


@given(st.lists(st.booleans(), min_size=2, max_size=200), st.integers(2, 300))
def test_risk_coverage_of_distinct_confidences(correct: list[bool], points: int) -> None:
    flags = np.array(correct)
    confidence = np.linspace(1, 0.5, len(flags))
    curve = risk_coverage(confidence, flags, points)
    risks = np.cumsum(~flags) / np.arange(1, len(flags) + 1)
    assert curve.aurc == pytest.approx(risks.mean(), abs=1e-10)
    assert len(curve.coverage) <= points
    kept = np.rint(curve.coverage * len(flags)).astype(int)
    np.testing.assert_allclose(curve.risk, risks[kept - 1], atol=1e-12)
    assert curve.coverage[-1] == 1.0


def test_risk_of_ties_is_spread_evenly_along_the_curve() -> None:
    curve = risk_coverage(np.array([0.9, 0.5, 0.5, 0.5, 0.5]), np.array([1, 1, 0, 0, 1]))
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 0.5 / 2, 1 / 3, 1.5 / 4, 2 / 5])


def test_errors_last_is_better_than_errors_first() -> None:
    confidence, correct = np.linspace(0, 1, 100), np.arange(100) >= 20
    assert risk_coverage(confidence, correct).aurc < 0.2 < risk_coverage(-confidence, correct).aurc
    assert risk_coverage(confidence, np.ones(100, bool)).aurc == 0.0
    assert risk_coverage(confidence, np.zeros(100, bool)).aurc == pytest.approx(1.0)


def test_without_pixels_everything_is_undefined() -> None:
    prob, labels = np.empty(0, np.float32), np.empty(0, bool)
    assert math.isnan(expected_calibration_error(prob, labels))
    assert math.isnan(brier(prob, labels))
    assert math.isnan(negative_log_likelihood(prob, labels))
    assert math.isnan(risk_coverage(prob, labels).aurc)
    assert risk_coverage(prob, labels).coverage.size == 0


def test_unusable_input_is_named() -> None:
    for figure in (expected_calibration_error, brier, negative_log_likelihood):
        with pytest.raises(DataError, match="apply the sigmoid or softmax"):
            figure(np.array([0.5, 1.5]), np.array([0, 1]))
        with pytest.raises(DataError, match="range from nan"):
            figure(np.array([0.5, math.nan]), np.array([0, 1]))
        with pytest.raises(DataError, match=r"neither the labels' \(3,\)"):
            figure(np.zeros((2, 4)), np.zeros(3, int))
        with pytest.raises(DataError, match="holds class 2"):
            figure(np.full((2, 3), 0.5), np.array([0, 1, 2]))
    with pytest.raises(ConfigError, match="bins must be at least 1, got 0"):
        reliability_curve(np.zeros(2), np.zeros(2, int), bins=0)
    with pytest.raises(ConfigError, match="eps"):
        negative_log_likelihood(np.zeros(2), np.zeros(2, int), eps=0)
    with pytest.raises(ConfigError, match="points=1"):
        risk_coverage(np.zeros(2), np.zeros(2, int), points=1)
