from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.training_parts import augmentation_of


def made(**values: Any) -> TrainSettings:
    return TrainSettings(Path("data"), Path("run"), **values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "dihedral"),
        ({"crop": (96, 128)}, "flips"),
        ({"resize": (192, 256)}, "flips"),
        ({"resize": (192, 192), "crop": (96, 128)}, "dihedral"),
        ({"crop": (0, 0)}, "flips"),
        ({"crop": (48, 48, 48)}, "flips"),
        ({"mirror": False}, "none"),
        ({"tta": "none"}, "none"),
        ({"crop": (32, 48, 48), "tta": "dihedral"}, "dihedral"),
    ],
)
def test_what_is_averaged_is_what_training_shows(values: dict[str, Any], expected: str) -> None:
    assert made(**values).test_time_augmentation == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": (96, 128), "tta": "dihedral"}, "96×128 is never turned"),
        ({"crop": (32, 48, 32), "tta": "dihedral"}, "32×48×32 is never turned"),
        ({"resize": (192, 256), "tta": "dihedral"}, "192×256 is never turned"),
        ({"mirror": False, "tta": "flips"}, "mirror images"),
        ({"mirror": False, "tta": "dihedral"}, "mirror images"),
    ],
)
def test_what_training_does_not_show_is_not_averaged(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**values)


def test_without_mirror_nothing_is_flipped_or_turned() -> None:
    assert (augmentation_of(made()).flip, augmentation_of(made()).turn) == (0.5, 0.5)
    assert (augmentation_of(made(mirror=False)).flip, augmentation_of(made(mirror=False)).turn) == (0.0, 0.0)
