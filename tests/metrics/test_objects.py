"""Figures of objects, against sums written out and against a brute-force reading of their definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import ObjectScore, object_figures, object_score

Pixels = set[tuple[int, ...]]


def _objects(objects: np.ndarray) -> list[Pixels]:
    numbers = sorted(set(objects.ravel().tolist()) - {0})
    return [{tuple(place) for place in np.argwhere(objects == number).tolist()} for number in numbers]


def _hausdorff(one: Pixels, other: Pixels) -> float:
    def directed(a: Pixels, b: Pixels) -> float:
        return max(min(math.dist(x, y) for y in b) for x in a)

    return max(directed(one, other), directed(other, one))


def _one_way(objects: list[Pixels], others: list[Pixels], diagonal: float) -> tuple[float, float]:
    """Sums of area × Dice and area × distance, one object after the other."""
    dice = distance = 0.0
    for one in objects:
        if not others:
            distance += len(one) * diagonal
            continue
        shares = [len(one & other) for other in others]
        partner = others[shares.index(max(shares))]
        dice += len(one) * 2 * max(shares) / (len(one) + len(partner))
        near = [_hausdorff(one, other) for other in others]
        distance += len(one) * (near[shares.index(max(shares))] if max(shares) else min(near))
    return dice, distance


def _slowly(found_map: np.ndarray, true_map: np.ndarray) -> ObjectScore:
    found, true = _objects(found_map), _objects(true_map)
    hit = set()
    for one in found:
        shares = [len(one & other) for other in true]
        most = max(shares, default=0)
        if most and 2 * most >= len(true[shares.index(most)]):
            hit.add(shares.index(most))
    diagonal = math.hypot(*found_map.shape)
    found_dice, found_distance = _one_way(found, true, diagonal)
    true_dice, true_distance = _one_way(true, found, diagonal)
    return ObjectScore(
        len(hit),
        len(found) - len(hit),
        len(true) - len(hit),
        sum(map(len, found)),
        sum(map(len, true)),
        found_dice,
        true_dice,
        found_distance,
        true_distance,
    )


def _close(one: ObjectScore, other: ObjectScore) -> None:
    for name, value in vars(one).items():
        assert getattr(other, name) == pytest.approx(value), name


MAPS = arrays.arrays(np.int64, (6, 7), elements=st.sampled_from([0, 0, 1, 2, 5]))


@settings(max_examples=60)
@given(MAPS, MAPS)
def test_scores_are_those_of_the_definition(found: np.ndarray, truth: np.ndarray) -> None:
    _close(_slowly(found, truth), object_score(found, truth))


def test_volumes_too() -> None:
    rng = np.random.default_rng(3)
    found, truth = rng.integers(0, 3, (2, 3, 4, 5))
    _close(_slowly(found, truth), object_score(found, truth))


def test_by_hand() -> None:
    truth = np.zeros((4, 10), np.uint8)
    truth[:, :2], truth[:, 4:8] = 7, 3  # 8 and 16 pixels
    found = np.zeros((4, 10), np.int32)
    found[:, :2], found[:, 4:7], found[0, 9] = 1, 2, 9  # exact; 12 of 16; one pixel beside everything
    score = object_score(found, truth)
    assert (score.tp, score.fp, score.fn) == (2, 1, 0)
    assert score.f1 == pytest.approx(4 / 5)
    partial = 2 * 12 / (12 + 16)
    assert score.dice == pytest.approx(((8 * 1 + 12 * partial) / 21 + (8 * 1 + 16 * partial) / 24) / 2)
    # The lonely pixel at (0, 9) is nearest to the 4×4 object, whose corner (3, 4) is farthest from it.
    assert score.hausdorff == pytest.approx(((12 * 1 + 1 * math.hypot(3, 5)) / 21 + 16 * 1 / 24) / 2)
    twice = object_score(found, truth, spacing=(2, 2))
    assert twice.hausdorff == pytest.approx(2 * score.hausdorff)
    assert math.isnan(object_score(found, truth, hausdorff=False).hausdorff)


def test_merging_two_objects_costs_one_of_them() -> None:
    truth = np.zeros((4, 9), np.uint8)
    truth[:, :4], truth[:, 5:] = 1, 2
    merged = np.ones((4, 9), np.uint8)
    score = object_score(merged, truth)
    assert (score.tp, score.fp, score.fn) == (1, 0, 1)


@pytest.mark.parametrize(("width", "tp"), [(4, 1), (3, 0)])
def test_half_of_an_object_is_enough(width: int, tp: int) -> None:
    truth, found = np.zeros((1, 8), np.uint8), np.zeros((1, 8), np.uint8)
    truth[:], found[:, :width] = 1, 1
    assert object_score(found, truth, hausdorff=False).tp == tp


def test_two_halves_of_one_object_are_found_once() -> None:
    score = object_score(np.array([[1, 1, 2, 2]]), np.array([[1, 1, 1, 1]]))
    assert (score.tp, score.fp, score.fn) == (1, 1, 0)


def test_nothing_found_and_nothing_to_find() -> None:
    nothing, something = np.zeros((3, 4), np.uint8), np.ones((3, 4), np.uint8)
    both = object_score(nothing, nothing)
    assert (both.f1, both.dice, both.hausdorff) == (1, 1, 0)
    assert math.isnan(both.precision)
    assert math.isnan(both.recall)
    for found, truth in ((nothing, something), (something, nothing)):
        score = object_score(found, truth)
        assert (score.f1, score.dice, score.hausdorff) == (0, 0, 5)
        assert object_score(found, truth, spacing=(2, 2)).hausdorff == 10
        assert (score + both) == score


def test_images_are_pooled_object_by_object() -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.integers(0, 4, (2, 5, 9, 8))
    figures = json.loads(json.dumps(object_figures(list(found), list(truth))))
    scores = [object_score(*maps) for maps in zip(found, truth, strict=True)]
    pooled = reduce(add, scores)
    assert figures["object_f1"] == pytest.approx(pooled.f1)
    assert figures["object_dice"] == pytest.approx(pooled.dice)
    assert figures["object_hausdorff"] == pytest.approx(pooled.hausdorff)
    assert (figures["objects_found"], figures["objects_true"]) == (15, 15)
    assert figures["per_image"]["object_dice"]["values"] == pytest.approx([score.dice for score in scores])
    assert figures["object_distance_unit"] == "pixels"


def test_renumbering_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    found, truth = rng.integers(0, 4, (2, 9, 8))
    again = np.array([0, 900, 3, 77])[found], np.array([0, 2, 1, 10**6])[truth]
    _close(object_score(found, truth), object_score(*again))


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), int), "found must be a map of whole object numbers, not float64"),
        (np.zeros((2, 2), int), np.zeros((2, 2), bool), "truth must be a map of whole object numbers, not bool"),
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "truth has shape"),
        (np.full((2, 2), -1), np.zeros((2, 2), int), "object numbers from 0"),
    ],
)
def test_other_maps_are_refused(found: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        object_score(found, truth)


def test_lists_and_spacings_that_do_not_fit_are_refused() -> None:
    zeros = np.zeros((2, 2), int)
    for lists in product(([], [zeros, zeros]), ([], [zeros])):
        with pytest.raises(DataError, match="one map of true objects for each"):
            object_figures(*lists)
    for spacing in ((1.0,), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="must be 2 positive numbers"):
            object_score(zeros, zeros, spacing=spacing)


def test_real_glands_are_their_own_best_match(real_data: Callable[[str], Path]) -> None:
    with Image.open(real_data("GlaS") / "testA_10_anno.bmp") as picture:
        truth = np.array(picture)
    score = object_score(truth, truth)
    assert (score.tp, score.fp, score.fn, score.dice, score.hausdorff) == (31, 0, 0, 1.0, 0.0)
