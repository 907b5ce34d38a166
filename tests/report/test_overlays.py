from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from d2ed2q.errors import DataError
from d2ed2q.report import overlay, uncertainty_map
from d2ed2q.report.overlays import FALSE_NEGATIVE, FALSE_POSITIVE, PREDICTED, TRUE_POSITIVE

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def as_seen(color: tuple[int, int, int], vision: str) -> np.ndarray:
    encoded = np.array(color) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    return np.asarray(rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)))


@pytest.mark.parametrize("vision", VISION)
def test_colours_stay_apart_for_every_kind_of_colour_vision(vision: str) -> None:
    colors = [as_seen(color, vision) for color in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE)]
    distances = [float(deltaE_ciede2000(a, b)) for a, b in itertools.combinations(colors, 2)]
    assert min(distances) > 20


@pytest.fixture
def image() -> np.ndarray:
    return np.full((40, 50, 3), (200, 100, 50), np.uint8)


def square(top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_without_a_label_the_photograph_keeps_its_colours(image: np.ndarray) -> None:
    mask = square(10, 10, 12)
    before = image.copy()
    drawn = overlay(image, mask)
    assert (image == before).all()
    assert (drawn[~mask] == image[~mask]).all()
    assert tuple(drawn[10, 10]) == PREDICTED
    inside = drawn[15, 15].astype(int)
    assert (inside != PREDICTED).all()
    assert (np.abs(inside - PREDICTED) < np.abs(image[15, 15].astype(int) - PREDICTED)).all()


def test_with_a_label_each_kind_of_pixel_has_its_colour(image: np.ndarray) -> None:
    mask, label = square(5, 5, 20), square(5, 15, 20)
    drawn = overlay(image, mask, label)
    # Corners are borders, and borders are opaque.
    assert tuple(drawn[5, 5]) == FALSE_POSITIVE
    assert tuple(drawn[5, 15]) == TRUE_POSITIVE
    assert tuple(drawn[5, 34]) == FALSE_NEGATIVE
    untouched = drawn[~(mask | label)]
    assert (untouched == untouched[0]).all()
    assert len(set(untouched[0].tolist())) == 1  # grey
    assert untouched[0, 0] < 125  # and darker than the photograph's own luma


def test_a_line_one_pixel_wide_is_opaque(image: np.ndarray) -> None:
    mask = np.zeros((40, 50), bool)
    mask[20] = True
    assert (overlay(image, mask)[20] == PREDICTED).all()


@pytest.mark.parametrize(
    ("picture", "mask", "label", "message"),
    [
        (np.zeros((4, 5, 3)), np.zeros((4, 5), bool), None, "uint8"),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), bool), None, "H×W×3"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), bool), None, "mask must be bool of shape"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8), None, "mask must be bool"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool), np.zeros((5, 4), bool), "label must be bool"),
    ],
)
def test_wrong_arrays_are_named(picture: np.ndarray, mask: np.ndarray, label: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        overlay(picture, mask, label)


def test_uncertainty_is_lighter_the_more_there_is() -> None:
    colors = uncertainty_map(np.linspace(0, 1, 64)[None])
    assert colors.shape == (1, 64, 3)
    assert colors.dtype == np.uint8
    lightness = rgb2lab(colors)[0, :, 0]
    assert (np.diff(lightness) > 0).all()
    assert np.diff(lightness).max() < 2 * np.diff(lightness).mean()  # perceptually even


def test_uncertainty_beyond_its_range_is_clipped_and_nan_is_refused() -> None:
    colors = uncertainty_map(np.array([[-1.0, 0.0, 1.0, 2.0]]))
    assert (colors[0, 0] == colors[0, 1]).all()
    assert (colors[0, 2] == colors[0, 3]).all()
    with pytest.raises(DataError, match="NaN"):
        uncertainty_map(np.array([[0.5, np.nan]]))
    with pytest.raises(DataError, match="H×W"):
        uncertainty_map(np.zeros((2, 2, 3)))
