"""Training augmentation: what it may change, what it must not, and that it is the same each time."""

from __future__ import annotations

import colorsys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ed2q.data import Sample, TrainingAugmentation
from d2ed2q.data.color import shift_hsv
from d2ed2q.data.geometry import POINTS
from d2ed2q.errors import ConfigError, DataError

STILL = {"flip": 0.0, "turn": 0.0, "affine": 0.0, "color": 0.0}


def _sample(height: int, width: int, roi: bool = True) -> Sample:
    """An image whose red channel is 0.9 on the label and 0.1 elsewhere, in blobs of some pixels."""
    rng = np.random.default_rng(height * 1000 + width)
    label = torch.from_numpy((rng.random((height // 6 + 1, width // 6 + 1)) < 0.4).astype(np.int64))
    label = label.repeat_interleave(6, 0).repeat_interleave(6, 1)[:height, :width].contiguous()
    image = torch.stack([0.1 + 0.8 * label.float(), torch.rand(height, width), torch.rand(height, width)])
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[2:-2, 3:-3] = True
    return Sample(image, label, inside if roi else None, "a", "p", (0.1, 0.1))


def _same(first: Sample, second: Sample) -> bool:
    assert first.label is not None
    assert first.roi is not None
    assert second.label is not None
    assert second.roi is not None
    return (
        torch.equal(first.image, second.image)
        and torch.equal(first.label, second.label)
        and torch.equal(first.roi, second.roi)
    )


@settings(max_examples=40)
@given(
    st.sampled_from([(48, 48), (40, 56), (90, 90), (30, 30)]),
    st.sampled_from([(60, 70), (44, 100)]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_result_has_the_promised_types_and_shape(
    crop: tuple[int, int], size: tuple[int, int], roi: bool, seed: int
) -> None:
    augmentation = TrainingAugmentation(crop=crop, brightness=0.2, contrast=0.3, gamma=0.4)
    result = augmentation.augment(_sample(*size, roi), seed)
    assert result.label is not None
    assert result.roi is not None
    assert type(result.image) is torch.Tensor
    assert (result.image.dtype, result.label.dtype, result.roi.dtype) == (torch.float32, torch.int64, torch.bool)
    assert result.image.shape == (3, *crop)
    assert result.label.shape == result.roi.shape == crop
    assert 0 <= float(result.image.min()) <= float(result.image.max()) <= 1
    assert set(result.label.flatten().tolist()) <= {0, 1}
    assert (result.id, result.patient, result.spacing) == ("a", "p", (0.1, 0.1))


def test_same_sample_and_seed_give_the_same_result_and_global_generators_do_not_matter() -> None:
    sample = _sample(80, 90)
    augmentation = TrainingAugmentation(crop=(48, 48), brightness=0.2, contrast=0.3, gamma=0.4)
    first = augmentation.augment(sample, 7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    assert _same(first, augmentation.augment(sample, 7))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[index]
    assert not _same(first, augmentation.augment(sample, 8))


def test_sample_itself_is_not_changed() -> None:
    sample = _sample(60, 60)
    copy = sample.image.clone()
    for seed in range(8):
        TrainingAugmentation(gamma=0.3).augment(sample, seed)
    assert torch.equal(sample.image, copy)


@pytest.mark.parametrize("place", [{"crop": (64, 64)}, {"resize": (66, 66)}, {}])
def test_image_label_and_region_move_together(place: dict[str, tuple[int, int]]) -> None:
    augmentation = TrainingAugmentation(affine=1.0, color=0.0, **place)  # type: ignore[arg-type]
    for seed in range(12):
        result = augmentation.augment(_sample(96, 96), seed)
        assert result.label is not None
        assert result.roi is not None
        red = result.image[0]
        # Resampling blurs edges; away from them the image says what the label must be.
        certain = ((red - 0.5).abs() > 0.3) & result.roi
        assert float(certain.float().mean()) > 0.3
        agreement = ((red > 0.5) == (result.label == 1))[certain].float().mean()
        assert float(agreement) > 0.995
        # Outside of the image all is empty, and never counted.
        assert not result.label[result.image.amax(0) == 0].any()
        assert not result.roi[result.image.amax(0) == 0].any()


def test_every_place_of_a_crop_is_equally_likely() -> None:
    image = torch.arange(20.0).expand(1, 12, 20).contiguous() / 20
    sample = Sample(image, torch.zeros(12, 20, dtype=torch.int64), None, "a", "a")
    augmentation = TrainingAugmentation(crop=(8, 8), **STILL)  # type: ignore[arg-type]
    lefts = [round(float(augmentation.augment(sample, seed).image[0, 0, 0]) * 20) for seed in range(650)]
    counts = np.bincount(lefts, minlength=13)
    assert len(counts) == 13
    assert counts.min() > 25
    assert counts.max() < 85


def test_crop_without_moves_is_cut_out_bit_by_bit() -> None:
    sample = _sample(70, 80)
    result = TrainingAugmentation(crop=(32, 40), shift=0.1, **STILL).augment(sample, 3)  # type: ignore[arg-type]
    assert any(
        torch.equal(sample.image[:, top : top + 32, left : left + 40], result.image)
        for top in range(39)
        for left in range(41)
    )
    # With an affine transform that happens not to be drawn, nothing is resampled either.
    drawn = TrainingAugmentation(crop=(32, 40), **{**STILL, "affine": 1e-9}).augment(sample, 3)  # type: ignore[arg-type]
    assert set(drawn.image[0].flatten().tolist()) <= set(sample.image[0].flatten().tolist())


def test_image_smaller_than_the_crop_is_centred_and_its_padding_does_not_count() -> None:
    sample = _sample(30, 40, roi=False)
    result = TrainingAugmentation(crop=(50, 40), **STILL).augment(sample, 0)  # type: ignore[arg-type]
    assert result.roi is not None
    expected = torch.zeros(50, 40, dtype=torch.bool)
    expected[10:40] = True
    assert torch.equal(result.roi, expected)
    assert torch.equal(result.image[:, 10:40], sample.image)
    assert not result.image[:, :10].any()


def test_shift_and_scale_stay_within_their_limits() -> None:
    # A dot in the middle shows the shift; two dots show the scale.
    image = torch.zeros(1, 101, 101)
    image[0, 50, 30] = image[0, 50, 70] = 1
    sample = Sample(image, (image[0] > 0).long(), None, "a", "a")
    augmentation = TrainingAugmentation(flip=0, turn=0, affine=1, color=0, shift=0.1, scale=0.2)
    shifts, distances = [], []
    for seed in range(200):
        found = augmentation.augment(sample, seed).image[0]
        mass = found.sum(0) / found.sum()
        columns = torch.arange(101.0)
        left, right = mass * (columns < 50), mass * (columns >= 50)
        ends = [float((part * columns).sum() / part.sum()) for part in (left, right)]
        shifts.append(sum(ends) / 2 - 50)
        distances.append(ends[1] - ends[0])
    # A factor a in 0.8…1.2 fetches from a times as far, so the dots come to lie 40/a apart, and the shift over a away.
    assert 40 / 1.2 - 1 < min(distances) < 35
    assert 47 < max(distances) < 40 / 0.8 + 1
    assert 8 < max(shifts) < 10.1 / 0.8 + 1
    assert -10.1 / 0.8 - 1 < min(shifts) < -8


def test_moved_crops_inside_the_image_are_filled_from_around_them() -> None:
    sample = Sample(torch.ones(1, 400, 400), torch.zeros(400, 400, dtype=torch.int64), None, "a", "a")
    augmentation = TrainingAugmentation(crop=(40, 40), affine=1.0, color=0.0)
    full = [bool((augmentation.augment(sample, seed).image > 0.999).all()) for seed in range(40)]
    assert sum(full) >= 30  # only crops at the image's own edge may reach beyond it


def test_quarter_turns_and_flips_reach_all_eight_symmetries() -> None:
    image = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    sample = Sample(image, torch.zeros(2, 2, dtype=torch.int64), None, "a", "a")
    augmentation = TrainingAugmentation(affine=0, color=0)
    seen = {tuple(augmentation.augment(sample, seed).image.flatten().tolist()) for seed in range(150)}
    assert len(seen) == 8


def test_other_than_square_results_keep_their_shape() -> None:
    augmentation = TrainingAugmentation(turn=1.0)
    assert all(augmentation.augment(_sample(40, 60), seed).image.shape == (3, 40, 60) for seed in range(8))


def test_image_without_mask_is_refused() -> None:
    sample = Sample(torch.zeros(3, 8, 8), None, None, "x1", "x1")
    with pytest.raises(DataError, match="'x1' has no mask"):
        TrainingAugmentation().augment(sample, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": (8, 8), "resize": (8, 8)}, "exclude each other"),
        ({"crop": (8, 0)}, r"crop must be .* got \(8, 0\)"),
        ({"flip": 1.5}, "flip must lie between 0 and 1, got 1.5"),
        ({"hue": -1.0}, "hue must lie between 0 and 90"),
        ({"gamma": 1.0}, "gamma must lie"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingAugmentation(**change)  # type: ignore[arg-type]


@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.floats(-90, 90),
    st.floats(-100, 100),
    st.floats(-100, 100),
)
def test_hsv_shift_agrees_with_the_textbook(
    pixel: tuple[int, int, int], hue: float, saturation: float, value: float
) -> None:
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    expected = colorsys.hsv_to_rgb(
        (h + hue / 180) % 1, min(max(s + saturation / 255, 0), 1), min(max(v + value / 255, 0), 1)
    )
    found = shift_hsv(torch.tensor(pixel, dtype=torch.float32)[:, None, None] / 255, hue, saturation, value)
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=2e-5)


def test_grey_image_has_a_value_only() -> None:
    image = torch.tensor([[[0.0, 0.5, 1.0]]])
    torch.testing.assert_close(shift_hsv(image, 90, 100, 51), torch.tensor([[[0.2, 0.7, 1.0]]]))


def test_brightness_contrast_and_gamma_stay_within_their_limits() -> None:
    image = torch.full((3, 8, 8), 0.5)
    sample = Sample(image, torch.zeros(8, 8, dtype=torch.int64), None, "a", "a")
    still = {**STILL, "intensity": 1.0}
    bright = TrainingAugmentation(brightness=0.2, **still)  # type: ignore[arg-type]
    levels = [float(bright.augment(sample, seed).image.mean()) for seed in range(60)]
    assert 0.3 <= min(levels) < 0.35
    assert 0.65 < max(levels) <= 0.7
    gamma = TrainingAugmentation(gamma=0.5, **still)  # type: ignore[arg-type]
    levels = [float(gamma.augment(sample, seed).image.mean()) for seed in range(60)]
    assert 0.5**1.5 <= min(levels) < 0.38
    assert 0.66 < max(levels) <= 0.5**0.5 + 1e-6


def test_augmentation_is_fast_enough_to_hide_behind_a_training_step() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "image": torch.from_numpy(rng.integers(0, 256, (3, 584, 565), dtype=np.uint8)),
        "label": torch.zeros(584, 565, dtype=torch.uint8),
        "roi": torch.ones(584, 565, dtype=torch.bool),
    }
    augmentation = TrainingAugmentation(crop=(320, 320), affine=1.0, color=1.0)
    spent = []
    for seed in range(8):
        start = time.thread_time()  # other programs on the machine do not count
        augmentation.augment_tensors(tensors, seed)
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.05


@pytest.mark.parametrize(("spacing", "turned"), [(None, True), ((1.0, 1.05), True), ((1.0, 2.0), False)])
def test_only_square_pixels_are_turned_by_quarters(spacing: tuple[float, float] | None, turned: bool) -> None:
    rows = torch.arange(16.0).div(16)[:, None].expand(16, 16)
    sample = Sample(rows[None].clone(), torch.zeros(16, 16, dtype=torch.int64), None, "a", "a", spacing)
    augmentation = TrainingAugmentation(flip=0.0, turn=1.0, affine=0.0, color=0.0)
    seen = [augmentation.augment(sample, seed).image[0] for seed in range(8)]
    assert any(torch.allclose(image, rows.T) or torch.allclose(image, rows.T.flip(1)) for image in seen) == turned


def test_what_is_rotated_far_is_fetched_from_further_away_where_pixels_are_narrow() -> None:
    augmentation = TrainingAugmentation(
        crop=(16, 16), foreground=1.0, affine=1.0, shift=0.0, scale=0.0, rotate=45.0, color=0.0
    )
    label = torch.ones(200, 200, dtype=torch.int64)
    item = {"image": torch.ones(1, 200, 200), "label": label, "roi": label > 0, POINTS: [torch.tensor([[100, 100]])]}
    for seed in range(20):  # padding would be black
        assert augmentation.augment_tensors({**item, "aspect": 4.0}, seed)["image"].min() > 0.99
