from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.draw import disk, line
from skimage.segmentation import find_boundaries

from d2ed2q.data import TrainingAugmentation, TrainingSet, batches, evenly_spread, fingerprint, open_dataset
from d2ed2q.errors import ConfigError, DataError

FolderMaker = Callable[..., Path]


def balls(seed: int, count: int = 3, radius: int = 12, size: int = 96) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(count):
        mask[disk(rng.integers(radius, size - radius, 2), radius, shape=mask.shape)] = 255
    return mask


def tubes(seed: int, size: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(5):
        rows, columns = line(0, *rng.integers(0, size, 1), size - 1, *rng.integers(0, size, 1))
        for shift in range(3):
            mask[rows, np.minimum(columns + shift, size - 1)] = 255
    return mask


def cells(seed: int, size: int = 224) -> np.ndarray:
    """Cells between walls that are two pixels wide."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, size, (40, 2))
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1)
    nearest = np.linalg.norm(grid[:, :, None] - seeds, axis=-1).argmin(-1)
    return np.where(find_boundaries(nearest, mode="thick"), 0, 255).astype(np.uint8)


def write(folder: Path, masks: list[np.ndarray], color: bool = True) -> Path:
    from PIL import Image

    rng = np.random.default_rng(1)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, mask in enumerate(masks):
        pixels = rng.integers(0, 200, (*mask.shape, 3), dtype=np.uint8)
        if not color:
            pixels = np.repeat(pixels[..., :1], 3, axis=-1)
        Image.fromarray(pixels).save(folder / "images" / f"{index:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index:03}.png")
    return folder


def test_phantoms_of_retinas_are_thin_and_in_colour(phantoms: Path) -> None:
    found = fingerprint(open_dataset(phantoms))
    assert found.thin
    assert found.color
    assert found.median_size == (96, 96)
    assert found.has_roi
    assert (found.n_cases, found.n_patients, found.n_read) == (4, 4, 4)
    assert found.classes[1].cases == 1
    assert sum(shape.share for shape in found.classes) == pytest.approx(1, abs=1e-4)
    assert json.loads(json.dumps(found.to_dict()))["dims"] == 2
    assert found == fingerprint(open_dataset(phantoms))


@pytest.mark.parametrize(("make", "thin"), [(tubes, True), (cells, True), (balls, False)])
def test_tubes_and_walls_are_thin_and_balls_are_not(
    tmp_path: Path, make: Callable[[int], np.ndarray], thin: bool
) -> None:
    found = fingerprint(open_dataset(write(tmp_path / "data", [make(seed) for seed in range(3)], color=False)))
    assert found.thin is thin
    assert not found.color
    assert 1.5 < found.thickness_pixels < 5 if thin else found.thickness_pixels == 0


def test_many_small_balls_are_not_thin(tmp_path: Path) -> None:
    found = fingerprint(open_dataset(write(tmp_path / "data", [balls(seed, 25, 3) for seed in range(3)])))
    assert not found.thin
    assert found.classes[1].components > 10
    assert found.diameter == pytest.approx(7 / 96, rel=0.4)


def test_the_shape_of_a_ball_is_measured(tmp_path: Path) -> None:
    (shape,) = fingerprint(open_dataset(write(tmp_path / "data", [balls(0, 1, 20)] * 2))).classes[1:]
    assert shape.diameter == pytest.approx(40 / 96, rel=0.05)
    assert shape.thickness == pytest.approx(4 / 3 * 20 / 96, rel=0.1)  # four times the mean depth, r / 3
    assert shape.length == pytest.approx(1.8, rel=0.2)


def test_a_very_large_image_is_measured_where_its_foreground_is(tmp_path: Path) -> None:
    mask = np.zeros((1600, 1600), np.uint8)
    mask[1450:1550, 1450:1550] = 255
    found = fingerprint(open_dataset(write(tmp_path / "data", [mask, mask])))
    assert found.classes[1].thickness_pixels == pytest.approx(66, rel=0.1)
    assert found.classes[1].share == pytest.approx(100**2 / 1600**2, rel=0.01)


def test_only_some_cases_of_a_large_set_are_read(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "data", [balls(seed, 1, 4, 24) for seed in range(70)]))
    assert fingerprint(dataset).n_read == 60
    part = evenly_spread(dataset.train, 7)
    assert [case.id for case in part] == ["000", "010", "020", "030", "040", "050", "060"]
    assert fingerprint(dataset, part).n_cases == 7


def test_a_class_that_no_case_shows_is_no_small_object(tmp_path: Path) -> None:
    masks = [np.where(balls(seed, 1, 4, 24) > 0, 1, 0).astype(np.uint8) for seed in range(2)]
    masks.append(np.where(balls(2, 1, 4, 24) > 0, 2, 0).astype(np.uint8))
    dataset = open_dataset(write(tmp_path / "data", masks))
    found = fingerprint(dataset, dataset.train[:2])
    assert found.classes[2].diameter == 0
    assert found.diameter == found.classes[1].diameter > 0


def test_sets_without_images_or_foreground_are_refused(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "data", [balls(0)] * 2))
    with pytest.raises(DataError, match="no training images"):
        fingerprint(dataset, ())
    empty = open_dataset(write(tmp_path / "empty", [balls(0)] + [np.zeros((96, 96), np.uint8)] * 2))
    with pytest.raises(DataError, match="background only"):
        fingerprint(empty, empty.train[1:])


@pytest.mark.parametrize(
    ("name", "thin", "color", "dims"),
    [
        ("DRIVE", True, True, 2),
        ("CHASE_DB1", True, True, 2),
        ("GlaS", False, True, 2),
        ("ISBI2012", True, False, 2),
        ("Kvasir-SEG", False, True, 2),
        ("Task04_Hippocampus", False, False, 3),
    ],
)
def test_real_sets_are_recognised(
    real_data: Callable[[str], Path], name: str, thin: bool, color: bool, dims: int
) -> None:
    dataset = open_dataset(real_data(name))
    found = fingerprint(dataset, evenly_spread(dataset.train, 6))
    assert (found.thin, found.color, found.dims) == (thin, color, dims)


def test_epochs_of_a_part_go_through_all_images_in_turn(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    training_set = TrainingSet(dataset, dataset.train, TrainingAugmentation(resize=(16, 16), flip=0, turn=0), 0)
    drawn: list[int] = []
    draw = training_set.draw

    def noted(index: int, epoch: int, repetition: int = 0) -> dict[str, torch.Tensor]:
        drawn.append(index)
        return draw(index, epoch, repetition)

    training_set.draw = noted  # type: ignore[method-assign]
    for epoch in range(4):
        assert len(list(batches(training_set, 1, epoch, 0, 0, images=2))) == 2
    assert sorted(drawn[:4]) == sorted(drawn[4:]) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="at least 1 image"):
        next(batches(training_set, 1, 0, 0, images=0))
    assert training_set.nbytes == 4 * 96 * 96 * 5
