"""The vessels of the made-up retina."""

from __future__ import annotations

import numpy as np

from d2ed2q.data.vessel_tree import Eye, grow_vessels

EYE = Eye(disc=(-0.64, 0.0), disc_radius=0.15, macula=(0.11, -0.06), temple=1)


def test_vessels_stay_in_the_field_of_view_and_out_of_the_fovea() -> None:
    for seed in range(5):
        vessels = grow_vessels(np.random.default_rng(seed), EYE, 0.008)
        assert {vessel.vein for vessel in vessels} == {True, False}
        for vessel in vessels:
            assert len(vessel.points) == len(vessel.widths) >= 4
            assert np.hypot(*vessel.points.T).max() < 1.04
            assert np.hypot(*(vessel.points - EYE.macula).T).min() > 0.12


def test_widths_shrink_along_vessels_down_to_the_thinnest() -> None:
    vessels = grow_vessels(np.random.default_rng(0), EYE, 0.008)
    assert all((np.diff(vessel.widths) <= 0).all() for vessel in vessels)
    widths = np.concatenate([vessel.widths for vessel in vessels])
    assert widths.min() == 0.008
    assert widths.max() > 0.025


def test_veins_are_wider_than_arteries() -> None:
    vessels = [vessel for seed in range(5) for vessel in grow_vessels(np.random.default_rng(seed), EYE, 0.008)]
    widest = {kind: max(float(v.widths[0]) for v in vessels if v.vein is kind) for kind in (True, False)}
    assert widest[False] < widest[True]


def test_cubes_of_widths_add_up_at_branchings() -> None:
    vessels = grow_vessels(np.random.default_rng(2), EYE, 0.0)
    starts = {tuple(vessel.points[0]): vessel for vessel in vessels}
    checked = 0
    for parent in vessels:
        for index in range(1, len(parent.points) - 1):
            child = starts.get(tuple(parent.points[index]))
            if child is None or child is parent or parent.widths[index + 1] <= 0.0066 or child.widths[0] <= 0.0066:
                continue
            total = child.widths[0] ** 3 + parent.widths[index + 1] ** 3
            np.testing.assert_allclose(total, parent.widths[index] ** 3, rtol=0.02)
            checked += 1
    assert checked > 20
