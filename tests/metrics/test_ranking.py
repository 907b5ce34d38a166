"""Ranking figures against hand-worked cases and brute force over all thresholds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import (
    Ranking,
    average_precision,
    best_dice_threshold,
    confusion,
    precision_recall_curve,
    roc_auc,
    roc_curve,
)

# Few distinct values, so that ties within and between the classes are common.
_SCORES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])
_PAIRS = st.lists(st.tuples(_SCORES, st.booleans()), min_size=1, max_size=24)
_BOTH = _PAIRS.filter(lambda pairs: len({label for _, label in pairs}) == 2)


def _arrays(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in pairs], np.float32), np.array([label for _, label in pairs])


def test_auc_of_a_hand_worked_case_with_ties() -> None:
    # Pairs (positive, negative): .9>.5, .9>.3, .5=.5, .5>.3, .3<.5, .3=.3: 3 wins and 2 halves of 6.
    scores, labels = np.array([0.9, 0.5, 0.3, 0.5, 0.3]), np.array([1, 1, 1, 0, 0])
    assert roc_auc(scores, labels) == pytest.approx(4 / 6)


def test_average_precision_of_a_hand_worked_case() -> None:
    # Falling: positive (1/1), negative, positive (2/3), negative, positive (3/5).
    scores, labels = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([1, 0, 1, 0, 1])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_average_precision_takes_tied_scores_in_together() -> None:
    assert average_precision(np.zeros(4), np.array([1, 0, 0, 0])) == pytest.approx(0.25)


@given(_BOTH)
def test_auc_is_the_chance_that_a_positive_outranks_a_negative(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(scores[labels], scores[~labels])]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(wins), abs=1e-12)


@given(_BOTH)
def test_average_precision_is_the_sum_over_all_thresholds(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        counts = confusion(scores >= threshold, labels)
        expected += (counts.sensitivity - recall) * counts.tp / (counts.tp + counts.fp)
        recall = counts.sensitivity
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@given(_PAIRS)
def test_best_dice_is_the_best_of_all_thresholds_and_its_threshold_gives_it(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    threshold, dice = best_dice_threshold(scores, labels)
    every = [confusion(scores > cut, labels).dice for cut in (-1.0, *scores.tolist())]
    assert dice == pytest.approx(max(every), abs=1e-12)
    assert confusion(scores > threshold, labels).dice == pytest.approx(dice, abs=1e-12)
    assert confusion(scores > np.float32(threshold), labels).dice == pytest.approx(dice, abs=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12).filter(
        lambda pairs: any(label for _, label in pairs)
    )
)
def test_best_dice_threshold_separates_neighbouring_floats(pairs: list[tuple[int, bool]]) -> None:
    ladder = [np.float32(0.3)]
    for _ in range(3):
        ladder.append(np.nextafter(ladder[-1], np.float32(1)))
    scores = np.array([ladder[step] for step, _ in pairs], np.float32)
    labels = np.array([label for _, label in pairs])
    threshold, dice = best_dice_threshold(scores, labels)
    assert confusion(scores > threshold, labels).dice == pytest.approx(dice, abs=1e-12)


def test_best_dice_threshold_lies_halfway_into_the_gap() -> None:
    threshold, dice = best_dice_threshold(np.array([0.9, 0.8, 0.2, 0.1]), np.array([1, 1, 0, 0]))
    assert threshold == pytest.approx(0.5)
    assert dice == 1.0


@pytest.mark.parametrize("lowest", [0.0, 0.25, 1.0, -1000.0])
def test_best_dice_threshold_takes_everything_where_all_is_positive(lowest: float) -> None:
    scores = np.array([lowest, lowest + 1], np.float32)
    threshold, dice = best_dice_threshold(scores, np.ones(2, bool))
    assert dice == 1.0
    assert threshold == pytest.approx(lowest, rel=1e-6, abs=1e-6)
    assert (scores > threshold).all()


def test_without_positives_the_best_mask_is_empty() -> None:
    scores = np.array([0.2, 0.9], np.float32)
    threshold, dice = best_dice_threshold(scores, np.zeros(2, bool))
    assert dice == 1.0
    assert not (scores > threshold).any()
    assert best_dice_threshold(np.empty(0), np.empty(0, bool)) == (0.5, 1.0)


@given(_BOTH)
def test_the_trapezoids_under_an_unthinned_roc_curve_add_up_to_its_area(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    curve = roc_curve(scores, labels)
    area = float(np.sum(np.diff(curve.fpr) * (curve.tpr[1:] + curve.tpr[:-1]) / 2))
    assert area == pytest.approx(roc_auc(scores, labels), abs=1e-12)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)


@given(_BOTH)
def test_precision_recall_points_are_those_of_masks(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    curve = precision_recall_curve(scores, labels)
    cuts = sorted(set(scores[labels].tolist()), reverse=True)
    counts = [confusion(scores >= cut, labels) for cut in cuts]
    np.testing.assert_allclose(curve.recall, [count.sensitivity for count in counts])
    np.testing.assert_allclose(curve.precision, [count.tp / (count.tp + count.fp) for count in counts])


@pytest.mark.parametrize("points", [4, 5, 64, 512])
def test_thinned_curves_stay_on_the_full_one(points: int) -> None:
    random = np.random.default_rng(0)
    labels = random.random(5000) < 0.3
    scores = (random.normal(size=5000) + labels).astype(np.float32)
    ranking = Ranking(scores, labels)
    full, thin = ranking.roc_curve(100_000), ranking.roc_curve(points)
    assert len(thin.fpr) <= points
    assert set(zip(*thin, strict=True)) <= set(zip(*full, strict=True))
    assert (np.diff(thin.fpr) >= 0).all()
    assert (np.diff(thin.tpr) >= 0).all()
    all_points, few = ranking.precision_recall_curve(100_000), ranking.precision_recall_curve(points)
    assert len(few.recall) <= points
    assert set(zip(*few, strict=True)) <= set(zip(*all_points, strict=True))
    assert few.recall[-1] == 1.0
    if points == 512:
        assert np.diff(few.recall).max() < 0.005


@given(_BOTH)
def test_auc_and_average_precision_do_not_change_under_rising_maps(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    for mapped in (np.exp(scores), 3 * scores - 7, scores**3, (scores * 8).astype(np.int64), scores.astype(np.float16)):
        assert roc_auc(mapped, labels) == roc_auc(scores, labels)
        assert average_precision(mapped, labels) == average_precision(scores, labels)


@given(_BOTH)
def test_auc_of_turned_scores_or_labels_is_the_complement(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = _arrays(pairs)
    assert roc_auc(-scores, labels) == pytest.approx(1 - roc_auc(scores, labels), abs=1e-12)
    assert roc_auc(scores, ~labels) == pytest.approx(1 - roc_auc(scores, labels), abs=1e-12)


def test_with_one_class_only_auc_is_undefined() -> None:
    scores = np.array([0.1, 0.2])
    for labels in (np.zeros(2, bool), np.ones(2, bool)):
        assert math.isnan(roc_auc(scores, labels))
        curve = roc_curve(scores, labels)
        assert np.isnan(curve.fpr).all() != np.isnan(curve.tpr).all()
    assert math.isnan(average_precision(scores, np.zeros(2, bool)))
    assert average_precision(scores, np.ones(2, bool)) == 1.0
    assert precision_recall_curve(scores, np.zeros(2, bool)).recall.size == 0


def test_images_are_ranked_like_their_flat_pixels() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.random((6, 7)), random.integers(0, 2, (6, 7))
    assert roc_auc(scores, labels) == roc_auc(scores.ravel(), labels.ravel())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_scores_that_are_not_finite_are_refused(bad: float, label: int) -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        Ranking(np.array([0.1, bad, 0.3]), np.array([0, label, 1]))


def test_unusable_input_is_named() -> None:
    with pytest.raises(DataError, match=r"labels has shape \(3,\), but scores has \(2,\)"):
        Ranking(np.zeros(2), np.zeros(3, bool))
    with pytest.raises(DataError, match="holds 255"):
        Ranking(np.zeros(2), np.array([0, 255]))
    with pytest.raises(DataError, match="holds -1"):
        Ranking(np.zeros(2), np.array([0, -1]))
    with pytest.raises(DataError, match="float64"):
        Ranking(np.zeros(2), np.array([0.0, 1.0]))
    with pytest.raises(ConfigError, match="points=3"):
        roc_curve(np.zeros(2), np.array([0, 1]), points=3)
    with pytest.raises(ConfigError, match="points=0"):
        precision_recall_curve(np.zeros(2), np.array([0, 1]), points=0)


def test_millions_of_pixels_are_ranked_without_overflow() -> None:
    n = 2_000_000  # 10¹² pairs, far beyond 32 bits
    scores = np.arange(n, dtype=np.float32)
    labels = np.zeros(n, bool)
    labels[n // 2 :] = True
    ranking = Ranking(scores, labels)
    assert ranking.roc_auc() == 1.0
    assert ranking.average_precision() == 1.0
    assert ranking.best_dice_threshold() == (n / 2 - 0.5, 1.0)
