"""The made-up retina."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as components
from skimage.morphology import skeletonize

from d2ed2q.data import make_phantom, open_dataset, write_phantom_dataset
from d2ed2q.errors import ConfigError


def test_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    first, second, other = make_phantom(5), make_phantom(5), make_phantom(6)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert (first.mask != other.mask).mean() > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_looks_like_a_fundus_photograph_in_numbers(seed: int) -> None:
    phantom = make_phantom(seed)
    assert [array.dtype.name for array in (phantom.image, phantom.mask, phantom.roi)] == ["uint8", "bool", "bool"]
    assert phantom.image.shape == (256, 256, 3)
    assert 0.06 < phantom.mask.sum() / phantom.roi.sum() < 0.16
    assert 0.6 < phantom.roi.mean() < 0.78
    assert not (phantom.mask & ~phantom.roi).any()
    inside = phantom.image[phantom.roi].astype(float).mean(0)
    assert inside[0] > inside[1] > inside[2] > 20
    assert phantom.image[~phantom.roi].mean() < 25
    # Vessels are darker than what is around them, most of all in green, but not so much that it would be easy.
    far = phantom.roi & ~phantom.mask
    contrast = phantom.image[far][:, 1].mean() / phantom.image[phantom.mask][:, 1].mean()
    assert 1.1 < contrast < 1.8
    # Widths, as area over length, reach from one pixel to trunks.
    line = skeletonize(phantom.mask)
    assert 1.5 < phantom.mask.sum() / line.sum() < 3.5
    # Most vessels hang together; some thin ones come apart where they are fainter than half a pixel.
    parts, _ = components(phantom.mask, np.ones((3, 3)))
    assert np.bincount(parts.ravel())[1:].max() > 0.7 * phantom.mask.sum()


def test_vessels_scale_with_the_picture() -> None:
    small, large = make_phantom(1, (128, 160)), make_phantom(1, (256, 320))
    assert small.image.shape == (128, 160, 3)
    shares = [phantom.mask.sum() / phantom.roi.sum() for phantom in (small, large)]
    assert 0.5 < shares[1] / shares[0] < 1.2


def test_is_fast() -> None:
    spent = []
    for seed in range(3):
        start = time.thread_time()
        make_phantom(seed)
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.3


def test_dataset_opens_as_a_plain_folder(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    assert dataset.name == "folder"
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    assert dataset.has_roi
    assert len({case.id for case in (*dataset.train, *dataset.test)}) == 6


def test_dataset_of_another_seed_has_nothing_in_common(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_phantom_dataset(tmp_path / str(seed), 2, 0, (64, 64), seed)
    assert not (tmp_path / "0" / "test").exists()
    pictures = {path.read_bytes() for path in tmp_path.rglob("images/*.png")}
    assert len(pictures) == 4


@pytest.mark.parametrize(("seed", "size"), [(-1, (128, 128)), (0, (63, 128))])
def test_numbers_out_of_range_are_refused(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="got"):
        make_phantom(seed, size)


def test_dataset_without_training_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 training"):
        write_phantom_dataset(tmp_path, 0, 1, (64, 64), 0)
