"""Specks of a mask are filled or dropped, as validation images would have it, and nothing else changes."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2ed2q.deploy import MaskRule, choose_mask_rule, clean_mask
from d2ed2q.errors import ConfigError, DataError

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=9))


def _disc(radius: float, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc: np.ndarray = np.hypot(y - 31.5, x - 31.5) < radius
    return disc


def _dice(masks: list[np.ndarray], labels: list[np.ndarray]) -> float:
    both = sum(int((mask & label).sum()) for mask, label in zip(masks, labels, strict=True))
    return 2 * both / sum(int(mask.sum() + label.sum()) for mask, label in zip(masks, labels, strict=True))


@given(MASKS, st.integers(0, 30), st.integers(0, 30))
def test_only_specks_change_and_a_clean_mask_stays(mask: np.ndarray, max_hole: int, min_area: int) -> None:
    given = mask.copy()
    filled = clean_mask(mask, MaskRule(max_hole))
    clean = clean_mask(mask, MaskRule(max_hole, min_area))
    np.testing.assert_array_equal(mask, given)
    assert clean.dtype == np.bool_
    assert (filled >= mask).all(), "filling only adds"
    assert (clean <= filled).all(), "dropping only takes away"
    np.testing.assert_array_equal(clean, clean_mask(clean, MaskRule(0, min_area)))
    if not max_hole:
        np.testing.assert_array_equal(filled, mask)


def test_holes_islands_and_what_reaches_the_border() -> None:
    mask = _disc(20)
    mask[30:32, 30:32] = False  # a hole of four pixels
    mask[0, 0] = mask[60:62, 60] = True  # islands of one and of two pixels
    mask[2:, 5] = True
    mask[2, :5] = True  # with the image's border, this shuts off a corner, which may go on outside
    clean = clean_mask(mask, MaskRule(4, 2))
    assert clean[30:32, 30:32].all()
    assert not clean[0, 0]
    assert clean[60:62, 60].all()
    assert not clean[10:, :5].any()
    assert not clean_mask(mask, MaskRule(3))[30:32, 30:32].any()
    assert not clean_mask(mask, MaskRule(0, 3))[60:62, 60].any()


@given(st.integers(0, 2**32 - 1))
def test_no_other_sizes_are_better_than_the_chosen_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [rng.random((24, 24)) < 0.5 for _ in range(2)]
    masks = [label ^ (rng.random(label.shape) < 0.2) for label in labels]
    rule = choose_mask_rule(masks, labels, [None, None]) or MaskRule()
    holes = [_dice([clean_mask(mask, MaskRule(hole)) for mask in masks], labels) for hole in range(6)]  # 1 % is 5
    assert holes[rule.max_hole] == max(holes)
    assert holes.index(max(holes)) == rule.max_hole, "of equally good ones the smallest"
    areas = [_dice([clean_mask(mask, MaskRule(rule.max_hole, a)) for mask in masks], labels) for a in range(7)]
    assert areas[rule.min_area] == max(areas)


def test_what_is_speck_and_what_is_structure_is_seen_on_validation_images() -> None:
    label, mask = _disc(24), _disc(24)
    for y, x in itertools.product((20, 32, 44), (24, 32)):
        mask[y, x : x + 3] = False  # holes of three pixels that are none
    label[28, 40:42] = mask[28, 40:42] = False  # one of two pixels that is
    mask[2, 2:6] = True  # an island that is none
    label[60, 2:8] = mask[60, 2:8] = True
    rule = choose_mask_rule([mask], [label], [None])
    assert rule == MaskRule(3, 5)
    assert _dice([clean_mask(mask, rule)], [label]) > _dice([mask], [label])


def test_nothing_is_done_without_a_gain() -> None:
    label = _disc(20)
    assert choose_mask_rule([label], [label], [None]) is None
    assert choose_mask_rule([np.zeros_like(label)], [label], [None]) is None
    assert choose_mask_rule([label], [np.zeros_like(label)], [None]) is None
    # A part of more than 1 % of the image is no speck, though dropping it would help.
    mask = label.copy()
    mask[2:12, 2:12] = True
    assert choose_mask_rule([mask], [label], [None]) is None


def test_pixels_outside_the_region_do_not_count() -> None:
    label, mask, region = _disc(20), _disc(20), _disc(28)
    mask[30:32, 30:32] = False
    assert choose_mask_rule([mask], [label], [region]) == MaskRule(4)
    region[28:34, 28:34] = False
    assert choose_mask_rule([mask & region], [label], [region]) is None


def test_wrong_rules_and_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_hole and min_area"):
        MaskRule(-1)
    with pytest.raises(ConfigError, match="max_hole and min_area"):
        MaskRule(0, -1)
    mask = np.ones((4, 4), np.bool_)
    with pytest.raises(DataError, match="one at least"):
        choose_mask_rule([], [], [])
    with pytest.raises(DataError, match="got 1, 2 and 1"):
        choose_mask_rule([mask], [mask, mask], [None])
    with pytest.raises(DataError, match="needs a label and a region of that shape"):
        choose_mask_rule([mask], [mask[:2]], [None])
    with pytest.raises(DataError, match="needs a label and a region of that shape"):
        choose_mask_rule([mask], [mask], [mask[0]])


def test_cleaning_needs_no_pytorch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from d2ed2q.deploy import MaskRule, clean_mask\n"
        "print(clean_mask(np.ones((4, 4), bool), MaskRule(3, 3)).sum())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "16"
