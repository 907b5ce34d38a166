from __future__ import annotations

from pathlib import Path

import pytest

from d2ed2q.backbones import backbone_names
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.learning_rate import learning_rate
from d2ed2q.recipes.train_settings import TrainSettings


def settings(**values: object) -> TrainSettings:
    return TrainSettings(Path("data"), Path("run"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", [*backbone_names(), "mynets:make"])
def test_every_backbone_has_a_rate(backbone: str) -> None:
    assert 1e-4 <= learning_rate(backbone) <= 5e-2
    assert settings(backbone=backbone).rate == learning_rate(backbone)


def test_small_networks_from_random_weights_take_larger_steps_than_ce_net() -> None:
    assert learning_rate("unet-xs") > learning_rate("ce-net")


def test_volumes_take_smaller_steps_than_images() -> None:
    assert learning_rate("unet-s", dims=3) == pytest.approx(3e-3)
    assert settings(backbone="unet-s", crop=(32, 48, 32)).rate == learning_rate("unet-s", dims=3)


def test_a_rate_that_is_given_counts_and_retraining_takes_a_third_of_it() -> None:
    assert settings(lr=6e-3).rate == 6e-3
    assert settings(lr=6e-3).rate_q == pytest.approx(2e-3)
    assert settings(backbone="unet-xs").rate_q == pytest.approx(learning_rate("unet-xs") / 3)
    assert settings(lr=6e-3, lr_q=1e-4).rate_q == 1e-4


def test_a_backbone_has_its_rate_in_any_spelling() -> None:
    for spelling in ("UNet-XS", "unet_xs", "U-Net xs"):
        assert settings(backbone=spelling).rate == learning_rate("unet-xs")
    with pytest.raises(ConfigError, match="unet-s"):
        learning_rate("unet-ss")
