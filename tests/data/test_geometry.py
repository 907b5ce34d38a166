"""Where pixels come from under the random moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ed2q.data.geometry import RandShiftScaled, RandWindowd

# Each pixel holds its own offset from the middle, row and column.
ROWS, COLUMNS = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(90.0) - 44.5, indexing="ij")
OFFSETS = torch.stack([ROWS, COLUMNS])


def test_resampling_without_shift_and_scale_gives_the_middle() -> None:
    transform = RandShiftScaled(("x",), ("bilinear",), (40, 50), shift=0.0, scale=0.0, prob=1.0)
    found = transform.set_random_state(0)({"x": OFFSETS})["x"]
    torch.testing.assert_close(found, OFFSETS[:, 10:50, 20:70], atol=1e-4, rtol=0)


def test_resampling_that_is_not_drawn_cuts_out_the_middle() -> None:
    transform = RandShiftScaled(("x",), ("bilinear",), (40, 50), shift=0.2, scale=0.2, prob=0.0)
    assert torch.equal(transform({"x": OFFSETS})["x"], OFFSETS[:, 10:50, 20:70])


def test_pixels_come_from_scaled_and_shifted_offsets_along_each_axis_by_itself() -> None:
    size = (40, 60)
    transform = RandShiftScaled(("x",), ("bilinear",), size, shift=0.1, scale=0.2, prob=1.0)
    transform.set_random_state(1)
    middle = [np.arange(length) - (length - 1) / 2 for length in size]
    scales, shifts = [], []
    for _ in range(150):
        found = transform({"x": OFFSETS})["x"].numpy().astype(float)
        for axis, (values, along) in enumerate(((found[0], middle[0]), (found[1].T, middle[1]))):
            np.testing.assert_allclose(values, values[:, :1].repeat(values.shape[1], 1), atol=1e-3)
            scale, shift = np.polyfit(along, values[:, 0], 1)
            np.testing.assert_allclose(values[:, 0], scale * along + shift, atol=1e-3)
            scales.append(scale)
            shifts.append(shift / size[axis])
    for numbers, low, high in ((scales, 0.8, 1.2), (shifts, -0.1, 0.1)):
        assert low - 1e-4 <= min(numbers) < low + 0.05 * (high - low)
        assert high + 1e-4 >= max(numbers) > high - 0.05 * (high - low)
        np.testing.assert_allclose(np.mean(numbers), (low + high) / 2, atol=0.1 * (high - low))


@pytest.mark.parametrize("size", [(20, 30), (60, 90), (70, 30), (64, 101)])
def test_window_shows_the_image_in_place_and_zero_around_it(size: tuple[int, int]) -> None:
    transform = RandWindowd(("x",), size, (4, 7))
    for seed in range(10):
        window = transform.set_random_state(seed)({"x": OFFSETS + 100})["x"]
        assert window.shape == (2, size[0] + 8, size[1] + 14)
        inside = window[0] > 0
        assert bool(inside.any())
        assert torch.equal(inside, window[1] > 0)
        rows, columns = inside.any(1).nonzero()[[0, -1], 0], inside.any(0).nonzero()[[0, -1], 0]
        part = window[:, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] - 100
        assert float(part[0].diff(dim=0).min()) == float(part[1].diff(dim=1).max()) == 1
        # The window proper lies inside the image where it fits, and holds all of the image where it does not.
        for length, full, margin, span in ((size[0], 60, 4, rows), (size[1], 90, 7, columns)):
            if length <= full:
                assert int(span[0]) <= margin
                assert int(span[1]) >= margin + length - 1
            else:
                assert int(span[1] - span[0]) + 1 == full
                assert abs(int(span[0]) - margin - (length - full) // 2) <= 1


@pytest.mark.parametrize("size", [(40, 60), (16, 20, 24)])
def test_bending_moves_neighbours_together_by_the_distance_that_was_asked_for(size: tuple[int, ...]) -> None:
    margin, elastic = 10, 2.0
    full = [extent + 2 * margin for extent in size]
    offsets = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in full), indexing="ij"))
    bent = RandShiftScaled(("x",), ("bilinear",), size, shift=0.0, scale=0.0, prob=1.0, elastic=elastic)
    middle = (slice(None), *(slice(margin, margin + extent) for extent in size))
    moves = [bent.set_random_state(seed)({"x": offsets})["x"] - offsets[middle] for seed in range(40)]
    assert torch.equal(moves[0], bent.set_random_state(0)({"x": offsets})["x"] - offsets[middle])
    for axis in range(len(size)):
        corners = torch.stack([move[axis].flatten()[0] for move in moves])  # a node, where nothing is interpolated
        assert 0.6 * elastic < float(corners.std()) < 1.5 * elastic
        steps = torch.stack([move[axis].diff(dim=axis).abs().max() for move in moves])
        assert float(steps.max()) < 2.0, "no fold: neighbours stay in their order, or nearly so"


def test_image_and_mask_bend_alike() -> None:
    disc = ((ROWS**2 + COLUMNS**2) < 15**2).float()[None]
    modes = ("bilinear", "nearest")
    bent = RandShiftScaled(("image", "label"), modes, (40, 70), shift=0.0, scale=0.0, prob=1.0, elastic=3.0)
    moved = bent.set_random_state(3)({"image": disc, "label": disc})
    agreement = ((moved["image"] > 0.5) == (moved["label"] > 0.5)).float().mean()
    assert float(agreement) > 0.99
    assert not torch.equal(moved["label"], disc[:, 10:50, 10:80])
