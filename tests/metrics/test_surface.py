"""Surface distances against hand-worked cases and brute force over all outline pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import assd, hd95, surface_distances

_MASK = arrays.arrays(np.bool_, (7, 6))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Coordinates of pixels with an edge neighbour outside, by looking at each."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(padded):
        steps = np.vstack((np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)))
        if not all(padded[tuple(index + step)] for step in steps):
            found.append(index - 1)
    return np.array(found)


def _brute(mask: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    one, other = _outline(mask) * spacing, _outline(label) * spacing
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    return distances.min(1), distances.min(0)


@settings(deadline=None)
@given(_MASK, _MASK, st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
def test_distances_are_those_to_the_nearest_outline_pixel(
    mask: np.ndarray, label: np.ndarray, spacing: tuple[float, float]
) -> None:
    there, back = surface_distances(mask, label, spacing)
    if not mask.any() or not label.any():
        assert there.size == back.size == 0
        assert math.isnan(hd95(mask, label))
        assert math.isnan(assd(mask, label))
        return
    expected_there, expected_back = _brute(mask, label, spacing)
    np.testing.assert_allclose(np.sort(there), np.sort(expected_there))
    np.testing.assert_allclose(np.sort(back), np.sort(expected_back))
    assert hd95(mask, label, spacing) == pytest.approx(
        max(np.percentile(expected_there, 95), np.percentile(expected_back, 95))
    )
    assert assd(mask, label, spacing) == pytest.approx(np.concatenate((expected_there, expected_back)).mean())
    assert hd95(mask, label, spacing) == hd95(label, mask, spacing)


def test_volumes_against_brute_force() -> None:
    random = np.random.default_rng(0)
    mask, label = random.random((5, 6, 7)) < 0.3, random.random((5, 6, 7)) < 0.3
    there, back = surface_distances(mask, label, (2.0, 1.0, 0.5))
    expected_there, expected_back = _brute(mask, label, (2.0, 1.0, 0.5))
    np.testing.assert_allclose(np.sort(there), np.sort(expected_there))
    np.testing.assert_allclose(np.sort(back), np.sort(expected_back))


def test_two_bars_three_pixels_apart() -> None:
    one, other = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    one[5, 4:16] = True
    other[8, 4:16] = True
    assert hd95(one, other) == 3.0
    assert assd(one, other) == 3.0
    assert hd95(one, other, spacing=(0.5, 9.0)) == 1.5


def test_distances_scale_with_the_spacing_and_not_with_the_frame() -> None:
    random = np.random.default_rng(1)
    mask, label = random.random((12, 12)) < 0.4, random.random((12, 12)) < 0.4
    assert assd(mask, label, (3.0, 3.0)) == pytest.approx(3 * assd(mask, label))
    assert hd95(np.pad(mask, 9), np.pad(label, 9)) == hd95(mask, label)


def test_a_few_far_pixels_are_left_out_of_hd95() -> None:
    label = np.zeros((60, 60), bool)
    label[10:40, 10:40] = True
    mask = label.copy()
    mask[59, 59] = True  # one of 117 outline pixels
    assert hd95(label, label) == 0.0
    assert hd95(mask, label) == 0.0
    assert assd(mask, label) > 0


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_a_spacing_that_does_not_fit_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="2 positive numbers"):
        hd95(np.ones((3, 3), bool), np.ones((3, 3), bool), spacing)


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError, match="label has shape"):
        assd(np.ones((3, 3), bool), np.ones((3, 4), bool))
