"""Counts and the figures made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ed2q.errors import DataError
from d2ed2q.metrics import Confusion, confusion

_COUNT = st.integers(0, 40)
_MASKS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def _masks(pairs: list[tuple[bool, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([mask for mask, _ in pairs]), np.array([label for _, label in pairs])


def test_figures_of_a_hand_worked_case() -> None:
    counts = confusion(np.array([[1, 1, 1, 0], [0, 0, 0, 0]]), np.array([[1, 1, 0, 1], [0, 0, 0, 0]]))
    assert counts == Confusion(tp=2, fp=1, fn=1, tn=4)
    assert counts.dice == pytest.approx(4 / 6)
    assert counts.iou == pytest.approx(2 / 4)
    assert counts.accuracy == pytest.approx(6 / 8)
    assert counts.sensitivity == pytest.approx(2 / 3)
    assert counts.specificity == pytest.approx(4 / 5)
    assert counts.mcc == pytest.approx((2 * 4 - 1) / math.sqrt(3 * 3 * 5 * 5))
    assert counts.total == 8


def test_only_pixels_inside_the_region_count() -> None:
    mask, label, roi = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1])
    assert confusion(mask, label, roi) == Confusion(tp=1, fp=0, fn=0, tn=1)


def test_empty_mask_and_label_agree() -> None:
    counts = confusion(np.zeros(5, bool), np.zeros(5, bool))
    assert (counts.dice, counts.iou, counts.accuracy, counts.specificity) == (1.0, 1.0, 1.0, 1.0)
    assert math.isnan(counts.sensitivity)
    assert math.isnan(counts.mcc)


def test_full_mask_and_label_leave_specificity_undefined() -> None:
    counts = confusion(np.ones(5, bool), np.ones(5, bool))
    assert (counts.dice, counts.sensitivity) == (1.0, 1.0)
    assert math.isnan(counts.specificity)


def test_mask_in_an_empty_label_scores_nothing() -> None:
    counts = confusion(np.array([1, 0]), np.array([0, 0]))
    assert (counts.dice, counts.iou) == (0.0, 0.0)


def test_without_pixels_accuracy_is_undefined() -> None:
    assert math.isnan(confusion(np.ones(3, bool), np.ones(3, bool), np.zeros(3, bool)).accuracy)


@given(_MASKS)
def test_mcc_is_the_correlation_of_mask_and_label(pairs: list[tuple[bool, bool]]) -> None:
    mask, label = _masks(pairs)
    value = confusion(mask, label).mcc
    if mask.all() or label.all() or not mask.any() or not label.any():
        assert math.isnan(value)
    else:
        assert value == pytest.approx(np.corrcoef(mask, label)[0, 1], abs=1e-12)


@given(_MASKS)
def test_dice_and_iou_are_symmetric_and_bound_to_each_other(pairs: list[tuple[bool, bool]]) -> None:
    mask, label = _masks(pairs)
    one, other = confusion(mask, label), confusion(label, mask)
    assert (one.dice, one.iou) == (other.dice, other.iou)
    assert one.dice == pytest.approx(2 * one.iou / (1 + one.iou))


@given(_MASKS)
def test_turning_both_swaps_sensitivity_and_specificity(pairs: list[tuple[bool, bool]]) -> None:
    mask, label = _masks(pairs)
    one, turned = confusion(mask, label), confusion(~mask, ~label)
    assert one.sensitivity == pytest.approx(turned.specificity, nan_ok=True)
    assert one.mcc == pytest.approx(turned.mcc, nan_ok=True)


@given(_MASKS, _MASKS)
def test_counts_add_up_to_those_of_pooled_pixels(
    first: list[tuple[bool, bool]], second: list[tuple[bool, bool]]
) -> None:
    assert confusion(*_masks(first)) + confusion(*_masks(second)) == confusion(*_masks(first + second))


@given(_COUNT, _COUNT, _COUNT, _COUNT)
def test_defined_figures_stay_in_range(tp: int, fp: int, fn: int, tn: int) -> None:
    counts = Confusion(tp, fp, fn, tn)
    for name in ("dice", "iou", "accuracy", "sensitivity", "specificity"):
        value = getattr(counts, name)
        assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(counts.mcc) or -1 - 1e-12 <= counts.mcc <= 1 + 1e-12


def test_mcc_of_billions_of_pixels_does_not_overflow() -> None:
    big = 10**12
    assert Confusion(big, 0, 0, big).mcc == pytest.approx(1.0)


def test_unusable_input_is_named() -> None:
    with pytest.raises(DataError, match="label has shape"):
        confusion(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(DataError, match="roi has shape"):
        confusion(np.zeros(2, bool), np.zeros(2, bool), np.zeros(3, bool))
    with pytest.raises(DataError, match="mask must hold 0 and 1 only, but holds 255"):
        confusion(np.array([0, 255], np.uint8), np.zeros(2, bool))
    with pytest.raises(DataError, match="float32"):
        confusion(np.zeros(2, np.float32), np.zeros(2, bool))
