from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from d2ed2q.data import ClassShape, Fingerprint
from d2ed2q.recipes.choices import choices, kind_of
from d2ed2q.recipes.train_settings import TrainSettings


def shape(share: float, diameter: float, width: float = 0.0, components: float = 1.0) -> ClassShape:
    thin = width > 0
    return ClassShape("x", share, 1.0, components, diameter, width / 500 or diameter / 2, width or 50, 500.0, thin)


def found(*classes: ClassShape, size: tuple[int, ...] = (500, 500), **changes: Any) -> Fingerprint:
    background = dataclasses.replace(shape(1 - sum(one.share for one in classes), 1.0), name="background")
    facts: dict[str, Any] = {
        "layout": "folder",
        "dims": len(size),
        "channels": 3,
        "color": True,
        "n_cases": 20,
        "n_patients": 20,
        "n_read": 20,
        "size": (size, size, size),
        "spacing": None,
        "spacing_varies": False,
        "intensity": "byte",
        "mean": 0.5,
        "std": 0.2,
        "has_roi": False,
        "classes": (background, *classes),
        "tubular": False,
    }
    return Fingerprint(**(facts | changes))


def base(one: Fingerprint) -> dict[str, Any]:
    """What is taken in a few minutes."""
    return next(choice for choice in choices(one) if choice.steps <= 1200).values


def test_thin_tubes_are_cut_from_images_at_their_own_resolution() -> None:
    one = found(shape(0.1, 0.3, width=4.5))
    values = base(one)
    assert kind_of(one) == "thin"
    assert (values["backbone"], values["crop"], values["loss"]) == ("unet-s", (192, 192), "bce")
    assert values["standardize"]
    assert not base(dataclasses.replace(one, intensity="window"))["standardize"], "of a scanner's units"
    assert "scale" not in values
    assert values["hue"] > 0
    assert base(found(shape(0.1, 0.3, width=10.0), size=(2000, 2000)))["scale"] == 0.5


def test_large_objects_in_photographs_are_seen_whole_by_a_deep_network() -> None:
    values = base(found(shape(0.15, 0.5), size=(352, 360)))
    assert not values["standardize"]
    assert (values["backbone"], values["resize"], values["loss"]) == ("res-unet-deep-xs", (256, 256), "bce_dice")
    assert values["zoom"] > 0.2
    sizes = ((400, 500), (600, 900), (700, 1000))
    values = base(found(shape(0.15, 0.5), size=(600, 900)))
    assert values["resize"] == (160, 256)
    mixed = dataclasses.replace(found(shape(0.15, 0.5), size=(600, 900)), size=sizes)
    assert base(mixed)["scale"] == pytest.approx(256 / 900, abs=0.01)
    assert "resize" not in base(mixed)


def test_small_rare_objects_keep_their_resolution_and_get_their_crops() -> None:
    values = base(found(shape(0.002, 0.02), size=(1000, 1000)))
    assert values.get("scale", 1.0) >= 0.8
    assert values["foreground"] == 0.33


def test_membranes_and_cells_are_cut_from_grey_images() -> None:
    one = found(shape(0.78, 0.16, components=100), channels=1, color=False)
    walls = dataclasses.replace(one.classes[0], thin=True, thickness_pixels=8.0)
    one = dataclasses.replace(one, classes=(walls, one.classes[1]))
    values = base(one)
    assert kind_of(one) == "texture"
    assert (values["backbone"], values["crop"]) == ("unet-s", (256, 256))
    assert "scale" not in values
    assert values["hue"] == values["saturation"] == 0
    assert values["contrast"] > 0


def test_volumes_are_cut_into_patches_no_larger_than_they_are() -> None:
    one = found(shape(0.03, 0.3), shape(0.02, 0.3), size=(36, 50, 35), channels=1, color=False, spacing=(1.0,) * 3)
    for choice in choices(one):
        crop = choice.values["crop"]
        stride = {"unet-m": 8, "unet-deep": 16}.get(choice.values["backbone"], 4)
        assert all(a % stride == 0 and a < b + stride for a, b in zip(crop, (36, 50, 35), strict=True))
        assert math.prod(crop) <= 48**3
    assert "spacing" not in base(one)
    varied = dataclasses.replace(one, spacing=(2.0, 0.7, 0.7), spacing_varies=True)
    assert base(varied)["spacing"] == (2.0, 0.7, 0.7)
    assert base(one)["foreground"] == 0.33


@pytest.mark.parametrize("size", [(64, 64), (90, 40), (6000, 4000), (20, 64, 64), (200, 512, 512)])
@pytest.mark.parametrize("width", [0.0, 4.0])
def test_every_choice_is_a_setting_with_its_reason(size: tuple[int, ...], width: float) -> None:
    for gpu in (False, True):
        for choice in choices(found(shape(0.1, 0.3, width), size=size), gpu):
            TrainSettings(Path("data"), Path("out"), **choice.values)
            assert choice.values.keys() == choice.reasons.keys()
    assert all(one.values["backbone"] == "fcn" for one in choices(found(shape(0.1, 0.3)), backbone="fcn"))


def test_every_candidate_differs_from_the_one_before() -> None:
    made = choices(found(shape(0.1, 0.3, width=3.0), size=(64, 64)))
    assert all(one.values != other.values for one, other in pairwise(made))


def test_left_and_right_are_not_mirrored() -> None:
    one = found(shape(0.1, 0.3), shape(0.1, 0.3))
    background, *classes = one.classes
    assert base(one)["mirror"]
    for left, right in (("kidney_left", "Kidney_Right"), ("Left Lung", "Right Lung"), ("left-eye", "right-eye")):
        named = [dataclasses.replace(cls, name=name) for cls, name in zip(classes, (left, right), strict=True)]
        sided = dataclasses.replace(one, classes=(background, *named))
        assert not base(sided)["mirror"]
        assert choices(sided)[0].reasons["mirror"] == f"mirrored, {left} would be {right}"
    for left, right in (("cleft", "cright"), ("left", "other")):
        named = [dataclasses.replace(cls, name=name) for cls, name in zip(classes, (left, right), strict=True)]
        assert base(dataclasses.replace(one, classes=(background, *named)))["mirror"]


def test_any_spelling_of_a_backbone_is_planned_alike() -> None:
    one = found(shape(0.1, 0.3))
    assert choices(one, backbone="UNet_S") == choices(one, backbone="unet-s")
