"""Pictures of one mean and one spread, whatever the light was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from d2ed2q.data import TrainingAugmentation, TrainingSet, field_of_view, make_phantom, open_dataset
from d2ed2q.data.standardization import standardized


def photograph(seed: int, size: tuple[int, int] = (96, 120)) -> np.ndarray:
    pixels = make_phantom(seed, size).image
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / 255


@pytest.mark.parametrize("seed", range(3))
def test_every_channel_has_one_mean_and_one_spread_in_the_field_of_view(seed: int) -> None:
    image = photograph(seed)
    found = standardized(image)
    inside = field_of_view((image * 255).round().astype(np.uint8).transpose(1, 2, 0))
    assert found.shape == image.shape
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert_allclose(found[:, inside].mean(axis=1), 0.5, atol=0.02)  # what is clipped moves it
    assert_allclose(found[:, inside].std(axis=1), 1 / 6, atol=0.03)
    assert (found[:, ~inside] <= 0.5).all()


@given(gain=st.floats(0.6, 1.0), tint=st.floats(0.7, 1.0))
def test_light_and_tint_do_not_matter(gain: float, tint: float) -> None:
    image = photograph(0)
    other = image * np.array([gain, gain * tint, gain], np.float32)[:, None, None]
    assert np.abs(standardized(other) - standardized(image)).mean() < 0.01


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (64, 64)])
def test_what_is_the_same_everywhere_becomes_one_half(value: float, size: tuple[int, int]) -> None:
    assert_array_equal(standardized(np.full((3, *size), value, np.float32)), np.float32(0.5))


def test_large_pictures_are_measured_at_every_nth_pixel() -> None:
    image = photograph(1, (600, 600))
    few, all_of_it = standardized(image)[:, ::2, ::2], standardized(np.ascontiguousarray(image[:, ::2, ::2]))
    assert_array_equal(few, all_of_it)


def test_training_sees_them_so(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    still = TrainingAugmentation(crop=None, resize=None, flip=0, turn=0, affine=0, color=0, intensity=0)
    item = TrainingSet(dataset, dataset.train, still, 0, standardize=True)[0]
    expected = standardized(dataset.read(dataset.train[0]).image.numpy())
    assert_allclose(item["image"].numpy(), expected, atol=0.5 / 255 + 1e-6)
