"""Netpbm files, packed or not: what old datasets hold, and what would hurt to unpack."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.data import list_images, read_image, read_mask
from d2ed2q.data.images import stem_of
from d2ed2q.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_colours_greys_and_bits_are_kept(tmp_path: Path, ending: str) -> None:
    colour = _write(tmp_path / f"a.ppm{ending}", b"P6\n# made by hand\n17 12\n255\n" + RGB.tobytes())
    grey = _write(tmp_path / f"b.PGM{ending}", b"P5 17 12 255 " + GREY.tobytes())
    bits = _write(tmp_path / f"c.pnm{ending}", b"P4\n17 12\n" + np.packbits(GREY > 100, axis=1).tobytes())
    np.testing.assert_array_equal(read_image(colour), RGB)
    np.testing.assert_array_equal(read_mask(grey), GREY)
    np.testing.assert_array_equal(read_mask(bits) == 0, GREY > 100)  # in a bitmap 1 is black
    text = b"P2\n17 12\n255\n" + b"\n".join(b" ".join(b"%d" % value for value in row) for row in GREY)
    np.testing.assert_array_equal(read_mask(_write(tmp_path / f"d.pgm{ending}", text)), GREY)
    assert [stem_of(path) for path in list_images(tmp_path)] == ["a", "b", "c", "d"]


def test_a_mask_that_is_named_as_a_colour_picture_is_read_by_its_content(tmp_path: Path) -> None:
    path = _write(tmp_path / "im0001.ah.ppm.gz", b"P5\n17 12\n255\n" + GREY.tobytes())
    np.testing.assert_array_equal(read_mask(path), GREY)
    assert stem_of(path) == "im0001.ah"


def test_other_packed_files_are_not_pictures(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.gz", "c.tar.gz", ".d.ppm.gz"):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5\n17 12\n255\n" + GREY.tobytes()[:-1], "truncated or damaged"),
        (b"P5\n17 12\n255\n" + GREY.tobytes() * 2, "more than the picture that its header describes"),
        (b"P5\n17 12\n65535\n" + GREY.tobytes() * 2, "has 65535 for white; save it with 8 bits"),
        (b"P5\n17 12\n3\n" + GREY.tobytes(), "has 3 for white"),
        (b"P5\n17 12\n", "has no value for white"),
        (b"P6\n99999 99999\n255\n", "million pixels"),
        (b"P7\nWIDTH 17\n", "not an image that can be read"),
        (b"#" * 100, "not an image that can be read"),
        (b"P2\n17 12\n255\n1 2 3", "truncated or damaged"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_bad_content_is_refused(tmp_path: Path, content: bytes, message: str, ending: str) -> None:
    path = _write(tmp_path / f"a.pgm{ending}", content)
    with pytest.raises(DataError, match=rf"a\.pgm{ending} .*{message}"):
        read_mask(path)


@pytest.mark.parametrize("keep", [1, 5, 12, 60, -9, -1])
def test_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    path = _write(tmp_path / "a.ppm.gz", b"P6\n17 12\n255\n" + RGB.tobytes())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.ppm\.gz is truncated or damaged"):
        read_image(path)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.ppm.gz", b"P6\n17 12\n255\n" + RGB.tobytes())
    content = bytearray(path.read_bytes())
    content[100:110] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.ppm\.gz is truncated or damaged"):
        read_image(path)


@pytest.mark.parametrize("start", [b"P5\n17 12\n255\n", b"P2\n17 12\n255\n", b"P5\n#"])
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a.pgm.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(256):
            file.write(b"1" * 2**20)
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.pgm\.gz"):
        read_mask(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_picture_written_by_pillow_is_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.ppm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm"), RGB)
