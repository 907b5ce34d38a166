"""Centreline Dice on structures whose centreline is known."""

from __future__ import annotations

import numpy as np
import pytest

from d2ed2q.errors import DataError
from d2ed2q.metrics import CentrelineOverlap, centreline_overlap, cl_dice, confusion


def _line(row: int, columns: slice = slice(5, 35)) -> np.ndarray:
    image = np.zeros((40, 40), bool)
    image[row, columns] = True
    return image


def test_cl_dice_of_a_hand_worked_case() -> None:
    # Lines one pixel thick are their own centreline: 20 of the 30 found are true, 20 of the 25 true are found.
    counts = centreline_overlap(_line(10, slice(5, 35)), _line(10, slice(15, 40)))
    assert counts == CentrelineOverlap(found_in_label=20, found=30, true_in_mask=20, true=25)
    precision, sensitivity = 20 / 30, 20 / 25
    assert counts.cl_dice == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_thickness_does_not_matter_but_a_gap_does() -> None:
    thin = _line(20)
    thick = np.zeros((40, 40), bool)
    thick[18:23, 5:35] = True
    broken = thick.copy()
    broken[:, 15:25] = False
    assert confusion(thin, thick).dice < 0.35
    assert cl_dice(thin, thick) > 0.95  # thinning may leave a stub in a corner
    assert cl_dice(broken, thick) < 0.9


def test_cl_dice_is_symmetric() -> None:
    random = np.random.default_rng(0)
    one, other = random.random((40, 40)) < 0.4, random.random((40, 40)) < 0.4
    assert cl_dice(one, other) == pytest.approx(cl_dice(other, one))
    assert 0 < cl_dice(one, other) < 1


def test_empty_structures() -> None:
    nothing = np.zeros((40, 40), bool)
    assert cl_dice(nothing, nothing) == 1.0
    assert cl_dice(_line(3), nothing) == 0.0
    assert cl_dice(nothing, _line(3)) == 0.0
    assert cl_dice(_line(3), _line(30)) == 0.0


def test_counts_of_two_images_pool() -> None:
    one = centreline_overlap(_line(3), _line(3))
    other = centreline_overlap(_line(3), _line(30))
    assert (one + other) == CentrelineOverlap(30, 60, 30, 60)
    assert (one + other).cl_dice == pytest.approx(0.5)


def test_volumes_have_centrelines_too() -> None:
    volume = np.zeros((20, 9, 9), bool)
    volume[:, 3:6, 3:6] = True
    assert cl_dice(volume, volume) == 1.0
    assert 0 < centreline_overlap(volume, volume).found <= 20, "it is thin"


def test_parts_of_a_volume_that_thinning_leaves_nothing_of_count_still() -> None:
    one, other = np.zeros((2, 20, 9, 9), bool)
    one[2:18, 1:3, 1:3] = other[2:18, 5:7, 5:7] = True  # two voxels wide
    assert cl_dice(one, one) == 1.0
    assert cl_dice(one, other) == 0.0
    both = one | other
    both[2:18, 1:4, 6:9] = True  # one more tube, which has a centreline
    assert 0 < cl_dice(one, both) < 1


def test_unusable_input_is_named() -> None:
    with pytest.raises(DataError, match="label has shape"):
        cl_dice(np.zeros((4, 4), bool), np.zeros((4, 5), bool))
    with pytest.raises(DataError, match="holds 255"):
        cl_dice(np.full((4, 4), 255), np.zeros((4, 4), bool))
