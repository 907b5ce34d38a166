"""Touching objects are told apart, and what is one object stays one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from d2ed2q.deploy import ObjectRule, choose_object_rule, make_prediction, separate_objects
from d2ed2q.deploy.prediction import calibrated_threshold
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics import object_score

PLAIN = ObjectRule(depth=1.0)


def _ellipse(
    shape: tuple[int, int], centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray, angle: float
) -> np.ndarray:
    """Below 1 inside; the smaller, the nearer to the centre."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.reshape(centre, (2, 1, 1))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    place: np.ndarray = np.hypot(u / radii[0], v / radii[1])
    return place


def _pair(rng: np.random.Generator, elongation: float) -> np.ndarray:
    """Two ellipses that overlap a little, on 100×100 pixels, numbered; of unequal sizes and any direction."""
    radii = rng.uniform(9, 15, 2)
    direction = rng.uniform(0, 2 * np.pi)
    # Along the line between them both are `radius` long; across it, that times the elongation.
    gap = rng.uniform(0.85, 0.97) * radii.sum()
    centres = 50 + np.outer((-gap / 2, gap / 2), (np.sin(direction), np.cos(direction)))
    places = [
        _ellipse((100, 100), centre, (radius, radius * elongation), direction)
        for centre, radius in zip(centres, radii, strict=True)
    ]
    return np.where(np.minimum(*places) < 1, np.argmin(places, axis=0) + 1, 0)


def _probability(objects: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    blurred = ndimage.gaussian_filter((objects > 0).astype(np.float32), 1)
    noise = 0 if rng is None else rng.normal(0, 0.05, objects.shape)
    noisy: np.ndarray = np.clip(blurred + noise, 0, 1).astype(np.float32)
    return noisy


# Ellipses that touch along their long sides have a shallow waist, which the usual depth leaves alone in one of eight.
@pytest.mark.parametrize(("elongation", "depth"), [(1.0, 0.15), (0.7, 0.15), (1.5, 0.1)])
def test_touching_discs_and_ellipses_are_separated(elongation: float, depth: float) -> None:
    rule = ObjectRule(depth=depth, min_area=20)
    rng = np.random.default_rng(7)
    pairs = [_pair(rng, elongation) for _ in range(40)]
    right = 0
    for truth in pairs:
        probability = _probability(truth, rng)
        merged = object_score(separate_objects(probability, 0.5, PLAIN), truth, hausdorff=False)
        assert (merged.tp, merged.fn) == (1, 1)
        score = object_score(separate_objects(probability, 0.5, rule), truth, hausdorff=False)
        right += score.tp == 2 and score.fp == 0 and score.dice > 0.9
    assert right >= 0.95 * len(pairs)


@pytest.mark.parametrize("height", ["distance", "probability"])
def test_single_objects_stay_whole(height: str) -> None:
    rng = np.random.default_rng(8)
    rule = msgspec.convert({"height": height, "smoothing": 2.0}, ObjectRule)
    for _ in range(20):
        radii = rng.uniform(8, 35, 2)
        truth = (_ellipse((100, 100), (50, 50), radii, rng.uniform(0, 3)) < 1).astype(int)
        objects = separate_objects(_probability(truth, rng), 0.5, dataclasses.replace(rule, min_area=20))
        assert objects.max() == 1


def test_a_dim_border_separates_where_the_outline_does_not() -> None:
    probability = np.zeros((30, 60), np.float32)
    probability[5:25, 5:55] = 0.9
    probability[5:25, 28:32] = 0.6
    assert separate_objects(probability, 0.5, ObjectRule("distance")).max() == 1
    objects = separate_objects(probability, 0.5, ObjectRule("probability", 0.5))
    assert objects.max() == 2
    assert ((objects > 0) == (probability > 0.5)).all()
    areas = np.bincount(objects.ravel())[1:]
    assert abs(int(areas[0]) - int(areas[1])) <= 40


@pytest.mark.parametrize("temperature", [0.6, 1.37])
def test_calibration_cuts_no_other_objects(temperature: float) -> None:
    learners = np.zeros((1, 1, 30, 60), np.float32)
    learners[..., 5:25, 5:55] = 0.95
    learners[..., 5:25, 28:32] = 0.85
    for depth in (0.1, 0.15, 0.2, 0.25, 0.3):
        rule = ObjectRule("probability", depth)
        plain = make_prediction(learners, "network", 0.5, rule=rule)
        threshold = calibrated_threshold(0.5, temperature)
        calibrated = make_prediction(learners, "network", threshold, temperature=temperature, rule=rule)
        np.testing.assert_array_equal(calibrated.objects, plain.objects)
        np.testing.assert_array_equal(calibrated.mask, plain.mask)


def test_three_discs_in_a_row_and_a_lonely_one() -> None:
    places = [_ellipse((60, 160), (30, x), (14, 14), 0) for x in (25, 50, 75, 130)]
    truth = np.where(np.minimum.reduce(places) < 1, np.argmin(places, axis=0) + 1, 0)
    assert separate_objects(_probability(truth), 0.5, PLAIN).max() == 2
    score = object_score(separate_objects(_probability(truth), 0.5, ObjectRule()), truth)
    assert (score.tp, score.fp, score.fn) == (4, 0, 0)
    assert score.dice > 0.98


def test_balls_are_separated_too() -> None:
    z, y, x = np.mgrid[:24, :24, :44]
    balls = [(z - 12) ** 2 + (y - 12) ** 2 + (x - centre) ** 2 < 100 for centre in (13, 30)]
    probability = (balls[0] | balls[1]).astype(np.float32)
    assert separate_objects(probability, 0.5, PLAIN).max() == 1
    assert separate_objects(probability, 0.5, ObjectRule()).max() == 2


def test_objects_fill_the_mask_and_are_numbered_without_gaps() -> None:
    rng = np.random.default_rng(0)
    probability = ndimage.gaussian_filter(rng.random((80, 90)), 3)
    threshold = float(np.median(probability))
    for height in ("distance", "probability"):
        rule = msgspec.convert({"height": height, "depth": 0.1}, ObjectRule)
        objects = separate_objects(probability, threshold, rule)
        assert objects.dtype == np.int32
        assert ((objects > 0) == (probability > threshold)).all()
        assert np.unique(objects).tolist() == list(range(objects.max() + 1))
        for number in range(1, objects.max() + 1):
            assert ndimage.label(objects == number)[1] == 1
        np.testing.assert_array_equal(objects, separate_objects(probability, threshold, rule))


def test_small_objects_are_dropped_and_small_holes_filled() -> None:
    probability = np.zeros((20, 40), np.float32)
    probability[2:18, 2:18] = 1
    probability[8:10, 8:10] = probability[0:20:19, 30] = 0
    probability[5:7, 30] = 1
    assert separate_objects(probability, 0.5, PLAIN).max() == 2
    clean = separate_objects(probability, 0.5, ObjectRule(depth=1.0, min_area=3, max_hole=4))
    assert clean.max() == 1
    assert (clean[2:18, 2:18] == 1).all()
    assert separate_objects(probability, 0.5, ObjectRule(depth=1.0, max_hole=3))[8, 8] == 0


def test_a_bay_at_the_border_of_the_image_is_no_hole() -> None:
    probability = np.ones((6, 6), np.float32)
    probability[0, 2] = 0
    assert separate_objects(probability, 0.5, ObjectRule(max_hole=5))[0, 2] == 0


def test_nothing_and_everything() -> None:
    assert not separate_objects(np.zeros((5, 6), np.float32), 0.5, ObjectRule()).any()
    assert (separate_objects(np.ones((5, 6), np.float32), 0.5, ObjectRule()) == 1).all()
    assert not separate_objects(np.ones((5, 6), np.float32), 1.0, ObjectRule("probability")).any()


def test_a_rule_is_chosen_that_separates() -> None:
    rng = np.random.default_rng(1)
    pairs = [_pair(rng, 1.0) for _ in range(4)]
    probabilities = [_probability(truth, rng) for truth in pairs]
    for probability in probabilities:
        probability[2:4, 2:4] = 1  # a speck that is no object
    rule = choose_object_rule(probabilities, pairs, 0.5)
    assert rule.depth < 1
    assert rule.min_area > 4
    scores = [object_score(separate_objects(p, 0.5, rule), t) for p, t in zip(probabilities, pairs, strict=True)]
    assert all(score.f1 == 1 for score in scores)
    assert msgspec.convert(json.loads(json.dumps(dataclasses.asdict(rule))), ObjectRule) == rule


def test_the_simplest_rule_is_chosen_where_nothing_touches() -> None:
    truth = (_ellipse((60, 60), (30, 30), (20, 12), 0.4) < 1).astype(int)
    assert choose_object_rule([_probability(truth)], [truth], 0.5).depth == 1


def test_a_choice_needs_objects() -> None:
    nothing = np.zeros((5, 5), int)
    with pytest.raises(DataError, match="no validation image has an object"):
        choose_object_rule([nothing.astype(np.float32)], [nothing], 0.5)
    with pytest.raises(DataError, match="no validation image has an object"):
        choose_object_rule([], [], 0.5)
    with pytest.raises(DataError, match="0 probability maps, but 1 maps of objects"):
        choose_object_rule([], [nothing], 0.5)


@pytest.mark.parametrize(
    "values",
    [{"depth": 0}, {"depth": 1.1}, {"smoothing": -1}, {"min_area": -1}, {"max_hole": -1}, {"smoothing": np.inf}],
)
def test_rules_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        ObjectRule(**values)  # type: ignore[arg-type]


def test_other_heights_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="distance or probability, not 'size'"):
        ObjectRule("size")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="give one class"):
        separate_objects(np.zeros((1, 1, 4, 4), np.float32), 0.5, ObjectRule())


def test_neither_pytorch_nor_scikit_image_is_needed() -> None:
    script = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'skimage', 'monai')))\nimport numpy as np\n"
        "from d2ed2q.deploy import ObjectRule, separate_objects\n"
        "print(separate_objects(np.ones((4, 4), np.float32), 0.5, ObjectRule()).max())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_real_glands_that_were_grown_until_they_touch(real_data: Callable[[str], Path]) -> None:
    with Image.open(real_data("GlaS") / "train_22_anno.bmp") as picture:
        glands = np.array(picture)
    distance, nearest = ndimage.distance_transform_edt(glands == 0, return_indices=True)
    truth = np.where(distance <= 5, glands[tuple(nearest)], 0)
    merged = object_score(separate_objects(_probability(truth), 0.5, PLAIN), truth, hausdorff=False)
    rule = ObjectRule(depth=0.1, smoothing=3, min_area=50)
    score = object_score(separate_objects(_probability(truth), 0.5, rule), truth, hausdorff=False)
    assert merged.f1 < 0.7
    assert score.f1 > 0.95
    assert score.dice > 0.95
