from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ed2q.data import Sample, field_of_view, finds_regions, make_phantom, open_dataset


def sample_of(seed: int) -> Sample:
    phantom = make_phantom(seed, (96, 96))
    image = torch.from_numpy(phantom.image).permute(2, 0, 1).float() / 255
    roi = torch.from_numpy(np.asarray(phantom.roi, dtype=bool))
    return Sample(image, None, roi, str(seed), str(seed))


def test_the_disc_is_found_with_its_dark_spots_and_without_the_specks_around_it() -> None:
    rows, columns = np.mgrid[:60, :80]
    disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 25**2
    image = np.where(disc, 120, 3).astype(np.uint8)[..., None].repeat(3, 2)
    image[28:34, 36:44] = 0  # a haemorrhage is inside
    image[2:4, 2:4] = 200  # a reflex outside is not
    found = field_of_view(image)
    assert (found ^ disc).sum() < 0.02 * disc.sum()
    assert found[30, 40]
    assert not found[2, 2]


def test_an_image_without_a_black_rim_counts_whole_and_so_does_a_black_one() -> None:
    assert field_of_view(np.full((20, 30, 3), 90, np.uint8)).all()
    assert field_of_view(np.zeros((20, 30, 1), np.uint8)).all()


def test_regions_are_recognised_only_if_each_is_found() -> None:
    samples = [sample_of(seed) for seed in range(3)]
    assert finds_regions(samples)
    assert samples[0].roi is not None
    half = samples[0].roi.clone()
    half[:48] = False
    assert not finds_regions([*samples, dataclasses.replace(samples[0], roi=half)])
    assert not finds_regions([dataclasses.replace(samples[0], roi=None)])
    assert not finds_regions([])


@pytest.mark.parametrize("name", ["DRIVE", "CHASE_DB1"])
def test_the_regions_of_real_cameras_are_found(name: str, real_data: Callable[[str], Path]) -> None:
    dataset = open_dataset(real_data(name))
    assert finds_regions([dataset.read(case) for case in dataset.train[:4]])
