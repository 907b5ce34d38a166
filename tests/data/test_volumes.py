"""NIfTI files: whatever the order of their axes, they are read in one, and written back as they were."""

from __future__ import annotations

import gzip
import struct
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from tests.data.nifti import SHAPE, affine_of, label, scan, write

from d2ed2q.data import list_volumes, read_volume, write_volume
from d2ed2q.data.volumes import require_same_grid, volume_name
from d2ed2q.errors import DataError

ORIENTATIONS = [
    "".join(codes) for order in permutations((("L", "R"), ("P", "A"), ("I", "S"))) for codes in product(*order)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_is_read_in_one_and_written_back(codes: str, tmp_path: Path) -> None:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = write(tmp_path / "scan.nii", values, affine_of(codes, (1.0, 2.0, 3.0)))
    volume = read_volume(path)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(volume.values[0], np.asarray(canonical.dataobj).T)
    assert volume.spacing == pytest.approx(canonical.header.get_zooms()[::-1])
    write_volume(tmp_path / "back.nii", volume.values[0], volume)
    back = nibabel.load(tmp_path / "back.nii")
    assert np.array_equal(back.affine, nibabel.load(path).affine)
    assert np.array_equal(np.asarray(back.dataobj), values)


def test_headers_that_lie_and_surfaces_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", content, 42, -1)  # dim[1]
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=r"scan\.nii\.gz"):
        read_volume(path)
    axes = (
        nibabel.cifti2.ScalarAxis(["a"]),
        nibabel.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4), name="thalamus_left"),
    )
    nibabel.save(nibabel.Cifti2Image(np.zeros((1, 8)), axes), tmp_path / "s.dscalar.nii")
    with pytest.raises(DataError, match="is a Cifti2Image, which has no voxels in space"):
        read_volume(tmp_path / "s.dscalar.nii")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_kind_of_nifti_is_kept(kind: Any, suffix: str, tmp_path: Path) -> None:
    oblique = affine_of("LPS", (0.7, 0.7, 4.0))
    turn = np.eye(4)
    turn[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    oblique = turn @ oblique
    volume = read_volume(write(tmp_path / f"scan{suffix}", scan(), oblique, kind))
    assert volume.spacing == pytest.approx((4.0, 0.7, 0.7))
    mask = (volume.values[0] > 300).astype(np.uint8)
    write_volume(tmp_path / f"a.b-mask{suffix}", mask, volume)
    back = nibabel.load(tmp_path / f"a.b-mask{suffix}")
    assert type(back) is kind
    assert back.get_data_dtype() == np.uint8
    assert np.allclose(back.affine, oblique, atol=1e-6)
    assert np.array_equal(read_volume(tmp_path / f"a.b-mask{suffix}").values[0], mask)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.b-mask{suffix}", f"scan{suffix}"]
    assert volume_name(tmp_path / f"a.b-mask{suffix}") == "a.b-mask"


def test_writing_touches_no_other_file_and_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "scan.nii.gz", scan()))
    (tmp_path / ".mask.nii.gz").write_text("of someone else")
    contents = []
    for _ in range(2):
        write_volume(tmp_path / "mask.nii.gz", label().T, volume)
        contents.append((tmp_path / "mask.nii.gz").read_bytes())
    assert contents[0] == contents[1]
    assert (tmp_path / ".mask.nii.gz").read_text() == "of someone else"
    with pytest.raises(DataError, match="do not fit"):
        write_volume(tmp_path / "mask.nii.gz", label().T[1:], volume)
    assert (tmp_path / "mask.nii.gz").read_bytes() == contents[0]


def test_a_fourth_dimension_is_channels(tmp_path: Path) -> None:
    values = np.stack([scan(1), scan(2)], axis=-1)
    volume = read_volume(write(tmp_path / "scan.nii.gz", values, affine_of("LAS", (1, 2, 3))))
    assert volume.values.shape == (2, *SHAPE[::-1])
    assert np.array_equal(volume.values[1], scan(2)[::-1].T)
    write_volume(tmp_path / "mask.nii.gz", label().T, volume)
    assert nibabel.load(tmp_path / "mask.nii.gz").shape == SHAPE
    assert read_volume(write(tmp_path / "one.nii", scan()[..., None])).values.shape == (1, *SHAPE[::-1])
    assert read_volume(write(tmp_path / "five.nii", values[..., None])).values.shape == (2, *SHAPE[::-1])
    with pytest.raises(DataError, match="9×11×7×1×2"):
        read_volume(write(tmp_path / "time.nii", values[..., None, :]))


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 1)])
def test_a_single_slice_has_two_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = scan(shape=shape)
    volume = read_volume(write(tmp_path / "slice.nii", values, affine_of("LPS", (1.5, 2.0, 5.0))))
    assert volume.values.shape == (1, 11, 9)
    assert volume.spacing == (2.0, 1.5)
    write_volume(tmp_path / "mask.nii", volume.values[0], volume)
    back = nibabel.load(tmp_path / "mask.nii")
    assert back.shape == shape
    assert np.array_equal(np.asarray(back.dataobj), values)


def test_scaling_in_the_header_is_applied_and_not_passed_on(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan(), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "ct.nii")
    # nibabel stores numbers so that they come back as given, whatever the factor.
    raw = bytearray((tmp_path / "ct.nii").read_bytes())
    raw[112:120] = struct.pack("<ff", 2.0, -1000.0)
    (tmp_path / "ct.nii").write_bytes(raw)
    stored = np.asarray(nibabel.load(tmp_path / "ct.nii").dataobj.get_unscaled())
    volume = read_volume(tmp_path / "ct.nii")
    assert np.array_equal(volume.values[0], (stored * 2.0 - 1000).T)
    write_volume(tmp_path / "mask.nii", label().T, volume)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj), label())


def test_other_byte_orders_and_types(tmp_path: Path) -> None:
    for dtype in (">i2", ">f4", "<u2", "i1", "f8", "u4"):
        values = (scan() % 100).astype(dtype)
        image = nibabel.Nifti1Image(values, np.eye(4), nibabel.Nifti1Header(endianness=">" if ">" in dtype else "<"))
        image.set_data_dtype(dtype)
        nibabel.save(image, tmp_path / "scan.nii")
        volume = read_volume(tmp_path / "scan.nii")
        assert np.array_equal(volume.values[0], values.T)
        write_volume(tmp_path / "mask.nii", label().T, volume)
        assert np.array_equal(read_volume(tmp_path / "mask.nii").values[0], label().T)


def test_microscopic_voxels_are_no_singular_affine(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "cells.nii", scan(), np.diag((2e-4, 2e-4, 1e-3, 1))))
    assert volume.spacing == pytest.approx((1e-3, 2e-4, 2e-4))


def _flat(path: Path) -> None:
    # nibabel itself would not write it: both forms of the affine are set in the header.
    write(path, scan())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<hh", raw, 252, 0, 1)
    struct.pack_into("<12f", raw, 280, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0)
    path.write_bytes(raw)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("no volume at all" * 100)


def _cut(path: Path) -> None:
    write(path, scan())
    path.write_bytes(path.read_bytes()[:-500])


def _huge(path: Path) -> None:
    write(path, scan())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<hhhh", raw, 40, 3, 32767, 32767, 32767)
    path.write_bytes(raw)


def _claims(path: Path) -> None:
    write(path, scan())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<hhhh", raw, 40, 3, 1000, 1000, 1000)
    path.write_bytes(raw)


def _nan(path: Path) -> None:
    values = scan().astype(np.float32)
    values[3, 3, 3] = np.nan
    write(path, values)


def _infinite(path: Path) -> None:
    values = scan().astype(np.float64)
    values[0, 0, 0] = np.inf
    write(path, values)


def _complex(path: Path) -> None:
    write(path, scan().astype(np.complex64))


def _colours(path: Path) -> None:
    write(path, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def _no_extent(path: Path) -> None:
    write(path, scan())
    raw = bytearray(path.read_bytes())
    struct.pack_into("<hhhh", raw, 40, 3, 9, 0, 7)
    path.write_bytes(raw)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_flat, "singular affine"),
        (_empty, "damaged"),
        (_text, "damaged"),
        (_cut, "cut off"),
        (_huge, "too much"),
        (_claims, "cut off"),
        (_nan, "NaN or infinite"),
        (_infinite, "NaN or infinite"),
        (_complex, "complex64"),
        (_colours, "one number a voxel"),
        (_no_extent, "dimensions 9×0×7"),
        (_folder, "there is no volume"),
    ],
)
def test_bad_files_are_one_clear_error(spoil: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.nii"
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.3, 0.9, -4])
def test_a_packed_file_that_is_cut_off(keep: float, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match="restore the original"):
        read_volume(path)


def test_a_changed_bit_in_a_packed_file_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", scan())
    raw = bytearray(path.read_bytes())
    for position in (len(raw) // 2, len(raw) - 6):
        changed = raw.copy()
        changed[position] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DataError, match="restore the original"):
            read_volume(path)


def test_a_packed_file_that_claims_more_than_it_can_hold(tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "scan.nii", scan()).read_bytes())
    struct.pack_into("<hhhh", raw, 40, 3, 1000, 1000, 1000)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match="1000×1000×1000"):
        read_volume(tmp_path / "bomb.nii.gz")


def test_damage_anywhere_in_the_header_is_no_other_error(tmp_path: Path) -> None:
    content = write(tmp_path / "scan.nii", scan()).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(content)
        for position in rng.integers(0, 352, 4):
            raw[position] = rng.integers(256)
        (tmp_path / "scan.nii").write_bytes(raw)
        try:
            volume = read_volume(tmp_path / "scan.nii")
        except DataError:
            continue
        assert volume.values.ndim == len(volume.spacing) + 1


def test_a_label_on_the_grid_of_its_image_whatever_its_orientation(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan(), affine_of("LPS", (1, 2, 3)))
    nibabel.save(image, tmp_path / "image.nii")
    nibabel.save(image.as_reoriented(nibabel.orientations.axcodes2ornt("PLI")), tmp_path / "other.nii")
    one, other = (read_volume(tmp_path / name) for name in ("image.nii", "other.nii"))
    require_same_grid(one, other)
    assert np.array_equal(one.values, other.values)


@pytest.mark.parametrize(
    ("affine", "shape", "message"),
    [
        (np.diag((1.0, 2.0, 3.0, 1.0)), (9, 11, 8), "9×11×8 voxels, but its image"),
        (np.diag((1.0, 2.0, 3.1, 1.0)), SHAPE, "1×2×3.1 mm, but its image"),
        (np.diag((1.0, 2.0, 3.0, 1.0)) + np.eye(4, k=3) * 1.5, SHAPE, "elsewhere in space"),
        (np.diag((-1.0, 2.0, 3.0, 1.0)), SHAPE, "elsewhere in space"),
    ],
)
def test_another_grid_is_refused(affine: np.ndarray, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    image = read_volume(write(tmp_path / "image.nii", scan()))
    moved = read_volume(write(tmp_path / "label.nii", label(shape=shape), affine))
    with pytest.raises(DataError, match=message):
        require_same_grid(image, moved)


def test_a_little_rounding_of_the_place_is_forgiven(tmp_path: Path) -> None:
    affine = np.diag((1.0, 2.0, 3.0, 1.0)) + np.eye(4, k=3) * 0.1
    require_same_grid(
        read_volume(write(tmp_path / "a.nii", scan())), read_volume(write(tmp_path / "b.nii", label(), affine))
    )


def test_listing_leaves_out_hidden_files(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz", "._a.nii.gz", "a.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_volumes(tmp_path)] == ["a.nii.gz", "b.nii"]
    with pytest.raises(DataError, match="cannot list"):
        list_volumes(tmp_path / "nowhere")


@pytest.mark.parametrize(("unit", "factor"), [("micron", 0.001), ("mm", 1), ("meter", 1000), ("unknown", 1)])
def test_spacings_are_millimetres_whatever_the_unit_of_the_file(unit: str, factor: float, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([2.0, 3.0, 5.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    assert read_volume(tmp_path / "scan.nii.gz").spacing == pytest.approx((5 * factor, 3 * factor, 2 * factor))
