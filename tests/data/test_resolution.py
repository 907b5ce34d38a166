"""Intensities, resolutions, resampling, and the random moves in three dimensions."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.nifti import label, scan, write, write_decathlon
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.data import Intensity, Resolution, TrainingAugmentation, TrainingSet, batches, open_dataset, resize_linear
from d2ed2q.data.geometry import POINTS, RandDihedrald, RandShiftScaled, RandWindowd
from d2ed2q.data.intensity import BYTE, PERCENTILE, foreground_window
from d2ed2q.data.reading import read_channels, read_label, read_on_grid
from d2ed2q.deploy.dihedral import averaged, symmetries
from d2ed2q.deploy.pipeline import at_own_resolution
from d2ed2q.deploy.tiling import in_windows
from d2ed2q.errors import ConfigError, DataError


def test_percentiles_belong_to_each_channel_of_each_image() -> None:
    values = np.stack([scan(0), 1000 + 5 * scan(1)])
    scaled = PERCENTILE.scaled(values)
    assert scaled.dtype == np.float32
    for channel in scaled:
        assert (channel.min(), channel.max()) == (0, 1)
        assert 0.3 < np.median(channel) < 0.7
    assert np.allclose(PERCENTILE.scaled(values * 3.0 + 7), scaled, atol=1e-5)


def test_a_channel_that_is_nearly_all_background_keeps_the_rest() -> None:
    values = np.zeros((1, 20, 20, 20), np.int16)
    values[0, 3, 4, 5:9] = (5, 10, 20, 40)
    assert PERCENTILE.scaled(values)[0, 3, 4, 5:9] == pytest.approx((0.125, 0.25, 0.5, 1))
    assert not PERCENTILE.scaled(np.full((1, 4, 4, 4), 77)).any()


def test_a_window_clips_and_a_foreground_gives_one() -> None:
    window = Intensity("window", (-100.0, 0.0), (300.0, 1.0))
    scaled = window.scaled(np.array([[-500, -100, 100, 300, 900], [0, 0, 1, 1, 2]]))
    assert scaled.tolist() == [[0, 0, 0.5, 1, 1], [0, 0, 1, 1, 1]]
    found = foreground_window([[np.arange(1000), np.arange(1000)], [np.full(5, 3), np.full(5, 3)]])
    assert found.low == pytest.approx((4.5, 3), abs=1)
    assert found.high == pytest.approx((994.5, 3), abs=1)
    for low, high in (((1.0,), (1.0,)), ((0.0, 1.0), (2.0,)), ((float("nan"),), (1.0,))):
        with pytest.raises(ConfigError, match="low < high"):
            Intensity("window", low, high)
    assert np.array_equal(BYTE.scaled(np.array([[0, 51, 255]], np.uint8)), np.array([[0, 0.2, 1]], np.float32))


def test_a_resolution_is_a_size() -> None:
    assert Resolution().size((10, 20, 30), None) == (10, 20, 30)
    assert Resolution(scale=0.5).size((10, 21), None) == (5, 10)
    assert Resolution(spacing=(3.0, 1.0, 1.0)).size((10, 20, 30), (6.0, 0.5, 1.0)) == (20, 10, 30)
    assert Resolution(spacing=(16.0, 1.0)).size((2, 5), (1.0, 1.0)) == (1, 5)
    assert Resolution((64, 48)).size((10, 20), None) == (64, 48)


@pytest.mark.parametrize(
    ("resolution", "shape", "spacing", "message"),
    [
        (Resolution(spacing=(1.0, 1.0)), (9, 9), None, "does not say how many millimetres"),
        (Resolution(spacing=(1.0, 1.0)), (9, 9, 9), (1.0, 1.0, 1.0), "3 dimensions, but spacing has 2"),
        (Resolution(spacing=(1.0, 1.0)), (9, 9), (17.0, 1.0), "more than 16 times"),
        (Resolution((32, 32)), (9, 9, 9), None, "resize takes pictures"),
    ],
)
def test_images_that_a_resolution_does_not_fit(
    resolution: Resolution, shape: tuple[int, ...], spacing: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        resolution.size(shape, spacing)


@pytest.mark.parametrize(
    "arguments",
    [
        {"resize": (64, 64), "scale": 0.5},
        {"scale": 2.0, "spacing": (1.0, 1.0)},
        {"scale": 0.01},
        {"scale": float("nan")},
        {"spacing": (1.0, 0.0)},
        {"spacing": (1.0, float("nan"))},
        {"resize": (4, 64)},
        {"resize": (64, 64, 64)},
    ],
)
def test_resolutions_that_cannot_be(arguments: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError):
        Resolution(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(9, 11, 7), (5, 20, 7), (18, 4, 3), (1, 1, 1)])
def test_resampling_is_that_of_pytorch(size: tuple[int, int, int]) -> None:
    values = np.random.default_rng(0).random((2, 9, 11, 7), np.float32)
    wanted = F.interpolate(torch.from_numpy(values)[None], size, mode="trilinear", align_corners=False)[0]
    assert np.allclose(resize_linear(values, size), wanted, atol=1e-6)
    picture = values[:, 4]
    wanted = F.interpolate(torch.from_numpy(picture)[None], size[:2], mode="bilinear", antialias=True)[0]
    assert np.allclose(resize_linear(picture, size[:2], antialias=True), wanted, atol=1e-5)


def test_antialiasing_keeps_the_mean_along_every_axis() -> None:
    values = np.random.default_rng(0).random((1, 32, 32, 32), np.float32)
    for size in ((8, 32, 32), (32, 8, 32), (32, 32, 8), (8, 8, 8)):
        assert resize_linear(values, size, antialias=True).mean() == pytest.approx(values.mean(), abs=0.01)


def grid(shape: tuple[int, ...]) -> Tensor:
    """Each voxel holds its own indices, plus 1."""
    return torch.stack(torch.meshgrid(*(torch.arange(1.0, extent + 1) for extent in shape), indexing="ij"))


def test_moves_of_volumes_keep_image_and_label_together() -> None:
    volume = grid((12, 16, 16))
    places = set()
    for seed in range(60):
        data = {"image": volume.clone(), "label": volume[:1].clone()}
        moved = RandDihedrald(("image", "label"), 0.5, 0.5).set_random_state(seed)(data)
        assert torch.equal(moved["image"][:1], moved["label"])
        assert moved["image"].shape == volume.shape, "slices stay slices"
        assert len(torch.unique(moved["image"][0].flatten(1), dim=1)) == 12
        places.add(tuple(moved["image"][:, 0, 0, 0].tolist()))
    assert len(places) == 8, "every corner comes to every corner"


def test_still_moves_of_volumes_change_nothing() -> None:
    volume = grid((14, 18, 22))
    for prob in (0.0, 1.0):
        transform = RandShiftScaled(("x",), ("bilinear",), (10, 12, 16), shift=0.0, scale=0.0, prob=prob)
        found = transform.set_random_state(0)({"x": volume})["x"]
        torch.testing.assert_close(found, volume[:, 2:12, 3:15, 3:19], atol=1e-4, rtol=0)


def test_rotation_of_volumes_is_in_the_plane_of_the_slices() -> None:
    volume = grid((9, 31, 31))
    transform = RandShiftScaled(("x",), ("bilinear",), (9, 15, 15), shift=0.0, scale=0.0, prob=1.0, rotate=40.0)
    found = transform.set_random_state(3)({"x": volume})["x"]
    torch.testing.assert_close(found[0], volume[0, :, 8:23, 8:23], atol=1e-3, rtol=0)
    assert float((found[1] - volume[1, :, 8:23, 8:23]).abs().max()) > 1


def test_rotation_keeps_shapes_where_pixels_are_not_square() -> None:
    volume = grid((3, 41, 31))
    transform = RandShiftScaled(("x",), ("bilinear",), (3, 9, 9), 0.0, 0.0, prob=1.0, rotate=40.0, aspect=4.0)
    found = transform.set_random_state(3)({"x": volume})["x"]
    before, after = (
        torch.hypot(rows - 21.0, 4 * (columns - 16.0))
        for rows, columns in ((volume[1, :, 16:25, 11:20], volume[2, :, 16:25, 11:20]), (found[1], found[2]))
    )
    torch.testing.assert_close(after, before, atol=1e-2, rtol=0)
    assert float((found[1] - volume[1, :, 16:25, 11:20]).abs().max()) > 1


def test_windows_of_volumes_lie_inside_and_find_the_foreground() -> None:
    volume = grid((12, 20, 16))
    places = [torch.tensor([[11, 0, 8]]), torch.tensor([[3, 19, 15], [3, 18, 15]])]
    found = []
    for seed in range(40):
        transform = RandWindowd(("x",), (4, 6, 20), (0, 0, 0), foreground=1.0).set_random_state(seed)
        window = transform({"x": volume, POINTS: places})["x"]
        assert window.shape == (3, 4, 6, 20)
        assert (window[0] > 0).sum() == 4 * 6 * 16, "padded along the last axis only"
        found.append(any((window == volume[:, d, h, w][:, None, None, None]).all(0).any() for d, h, w in places[0]))
    assert 8 < sum(found) < 32, "each class as often"


def test_foreground_crops_reach_small_structures(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, labels={"0": "background", "1": "spot"})
    spot = np.zeros((30, 32, 28), np.uint8)
    spot[25, 28, 3] = 1
    for number in range(4):
        write(root / "imagesTr" / f"case_{number}.nii.gz", scan(number, spot.shape))
        write(root / "labelsTr" / f"case_{number}.nii.gz", spot)
    dataset = open_dataset(root)
    hits = {}
    for share in (0.0, 1.0):
        augmentation = TrainingAugmentation(crop=(8, 8, 8), foreground=share, affine=0.0)
        items = TrainingSet(dataset, dataset.train, augmentation, 0)
        hits[share] = sum(bool(items.draw(0, epoch)["label"].any()) for epoch in range(30))
    assert hits[0.0] < 6
    assert hits[1.0] == 30


def test_batches_of_volumes_at_one_spacing(tmp_path: Path) -> None:
    dataset = open_dataset(write_decathlon(tmp_path))
    augmentation = TrainingAugmentation(crop=(8, 12, 16), foreground=0.5, rotate=20.0)
    items = TrainingSet(dataset, dataset.train, augmentation, 0, Resolution(spacing=(1.5, 1.0, 1.0)))
    for batch in batches(items, 2, 0, 0):
        assert batch["image"].shape == (2, 1, 8, 12, 16)
        assert batch["label"].shape == batch["roi"].shape == (2, 8, 12, 16)
        assert batch["image"].dtype == torch.float32
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    still = TrainingAugmentation(flip=0, turn=0, affine=0, hue=0, saturation=0, value=0)
    item = TrainingSet(dataset, dataset.train, still, 0)[0]
    sample = dataset.read(dataset.train[0])
    assert torch.allclose(item["image"], sample.image, atol=1e-3), "kept with 16 bits"
    with pytest.raises(ConfigError, match="crop takes 3 sizes"):
        TrainingSet(dataset, dataset.train, TrainingAugmentation(crop=(8, 8)), 0)


def test_a_label_is_read_with_its_image_and_without(tmp_path: Path) -> None:
    image = read_channels((write(tmp_path / "image.nii", scan()),), as_bytes=False)
    path = write(tmp_path / "label.nii", label().astype(np.float32))
    assert np.array_equal(read_on_grid(path, image), label().T)
    assert read_label(path).values.dtype == np.int32
    write(path, np.stack([label(), label()], axis=-1))
    with pytest.raises(DataError, match="2 channels; a label has one"):
        read_label(path)
    with pytest.raises(DataError, match="volume among pictures"):
        read_channels((tmp_path / "image.nii",), as_bytes=True)


def test_flips_and_turns_of_a_box() -> None:
    volume = np.random.default_rng(0).random((2, 5, 6, 6), np.float32)
    for tta, count in (("none", 1), ("flips", 8), ("dihedral", 16)):
        seen: list[np.ndarray] = []

        def run(part: np.ndarray, seen: list[np.ndarray] = seen) -> np.ndarray:
            seen.append(part)
            return part * 2

        assert np.allclose(averaged(run, volume, tta, 3), volume * 2, atol=1e-6)
        assert len(symmetries(tta, 3)) == len({part.tobytes() for part in seen}) == count
        assert all(part.shape[1] == 5 for part in seen), "slices stay slices"


def test_windows_of_a_volume_give_what_the_whole_gives() -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((1, 60, 48, 40), np.float32)
    kernel = torch.from_numpy(rng.random((1, 1, 3, 3, 3), np.float32) / 27)

    def run(part: np.ndarray) -> np.ndarray:
        return F.conv3d(torch.from_numpy(part)[None], kernel, padding=1)[0].numpy()

    whole = run(volume)
    found = in_windows(run, volume, (24, 24, 24), 0.5)
    # The network sees nothing beyond a window's edge; that this hardly shows is what the blending is for.
    assert np.abs(found - whole).max() < 0.01
    assert np.abs(found - whole).mean() < 5e-4


def test_large_volumes_are_taken_in_windows() -> None:
    volume = np.random.default_rng(0).random((1, 100, 104, 97), np.float32)
    seen: set[tuple[int, ...]] = set()

    def run(part: np.ndarray) -> np.ndarray:
        seen.add(part.shape[1:])
        return part[None] ** 2

    found = at_own_resolution(run, volume, volume.shape[1:], "none")
    assert seen == {(96, 96, 96)}
    assert np.allclose(found[0], volume**2, atol=1e-5)
    seen.clear()
    at_own_resolution(run, volume, volume.shape[1:], "none", large=(96, 64, 96))
    assert seen == {(96, 64, 96)}
    seen.clear()
    whole = volume[:, :96, :96, :96]
    at_own_resolution(run, whole, whole.shape[1:], "none", large=(32, 32, 32))  # no large one
    assert seen == {(96, 96, 96)}


def test_probabilities_come_back_at_the_volumes_own_resolution() -> None:
    volume = np.random.default_rng(0).random((1, 9, 14, 11), np.float32)
    shapes = set()

    def run(part: np.ndarray) -> np.ndarray:
        shapes.add(part.shape[1:])
        return np.stack([part, 1 - part], axis=0)

    for tta, window in product(("none", "dihedral"), (None, (8, 8, 8))):
        found = at_own_resolution(run, volume, (14, 14, 11), tta, window)
        assert found.shape == (2, 1, 9, 14, 11)
        assert np.allclose(found.sum(0), 1, atol=1e-5)
    assert (14, 14, 11) in shapes
    assert (8, 8, 8) in shapes
