"""Reading and writing of picture files, the ill-formed ones above all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from d2ed2q.data import list_images, list_unread, read_image, read_mask, write_png
from d2ed2q.data.images import _is_black_and_white, is_grey, read_numbers
from d2ed2q.errors import DataError, StorageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 16), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".TIFF"])
def test_lossless_formats_keep_colours_and_channels(tmp_path: Path, suffix: str) -> None:
    for name, array in (("rgb", RGB), ("grey", GREY)):
        path = tmp_path / f"{name}{suffix}"
        Image.fromarray(array).save(path)
        expected = array if array.ndim == 3 else array[:, :, None]
        np.testing.assert_array_equal(read_image(path), expected)


def test_jpeg_is_read_close_to_what_was_written(tmp_path: Path) -> None:
    smooth = np.tile(np.arange(0, 160, 10, dtype=np.uint8), (12, 1))[:, :, None].repeat(3, 2)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 8


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_palette_gives_colours_in_an_image_and_indices_in_a_mask(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 3).convert("L")
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 150, 0])
    picture.save(tmp_path / "a.png")
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 150, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), colours[GREY % 3])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY % 3)


def test_mask_with_white_as_palette_index_0_is_white_there(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 2).convert("L")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.gif"), np.where(GREY % 2, 0, 255))


def test_mask_palette_of_nearly_black_and_white_amid_stray_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 2).convert("L")
    picture.putpalette([4, 2, 4, 252, 254, 252, 192, 2, 0])
    picture.save(tmp_path / "a.png")
    found = read_mask(tmp_path / "a.png")
    assert set(np.unique(found)) == {3, 253}
    np.testing.assert_array_equal(found > 127, GREY % 2 == 1)


@pytest.mark.parametrize("used", [[0, 2], [0, 1], [1, 2]])
def test_mask_palette_with_a_colour_before_white_has_classes(tmp_path: Path, used: list[int]) -> None:
    numbers = np.array(used, np.uint8)[GREY % 2]
    picture = Image.fromarray(numbers).convert("L")
    picture.putpalette([0, 0, 0, 200, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), numbers)


def test_the_white_background_of_a_palette_with_colours_is_class_0_without_any_other_too(tmp_path: Path) -> None:
    for name, numbers in (("empty", GREY * 0), ("red", GREY % 2)):
        picture = Image.fromarray(numbers).convert("L")
        picture.putpalette([255, 255, 255, 200, 0, 0])
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), numbers)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_on_their_side_are_turned(tmp_path: Path, orientation: int, dtype: type) -> None:
    stored = np.arange(12 * 16, dtype=dtype).reshape(12, 16) + dtype(np.iinfo(dtype).max - 200)
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.tif")[..., 0], turned)
    (tmp_path / "a.tif").rename(tmp_path / "000000000001")  # as a node keeps what it is sent
    np.testing.assert_array_equal(read_numbers(tmp_path / "000000000001")[..., 0], turned)


@pytest.mark.parametrize("name", ["a.pgm", "000000000001", "a.png"])
def test_a_netpbm_file_is_known_by_what_it_holds(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"P5 4 4 255\n" + bytes(range(16)))
    np.testing.assert_array_equal(read_image(path)[..., 0], np.arange(16).reshape(4, 4))
    assert is_grey(path)
    for content, said in ((b"P5 4 4 15\n" + bytes(16), "has 15 for white"), (b"P5 4 4 255\n" + bytes(99), "more than")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=said):
            read_image(path)


def test_one_bit_mask_is_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.where(GREY > 100, 255, 0))


def test_grey_mask_saved_as_rgb_is_one_channel(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)


def test_coloured_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has colours"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    base = Image.fromarray(RGB if mode == "RGBA" else GREY)
    base.convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").squeeze(), np.asarray(base))


def test_transparent_pixels_are_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB).convert("RGBA")
    picture.putalpha(Image.fromarray(GREY))
    picture.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has transparent pixels; flatten"):
        read_image(tmp_path / "a.png")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image file .*a\.png"):
        read_image(tmp_path / "a.png")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"a\.png is empty"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".gif"])
@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"compression": "tiff_lzw"} if suffix == ".tif" else {}))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"a\{suffix} is (truncated|damaged|not an image)"):
        read_image(path)


def test_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        read_image(tmp_path / "a.png")


def test_cmyk_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg is a CMYK image; convert"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match="has 16 bits a channel"):
        read_image(tmp_path / f"a{suffix}")


def test_16_bit_colour_png_is_refused_though_pillow_would_cut_it_to_8_bits(tmp_path: Path) -> None:
    import struct
    import zlib

    rows = b"".join(b"\0" + (RGB[y].astype(">u2") * 257).tobytes() for y in range(RGB.shape[0]))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", RGB.shape[1], RGB.shape[0], 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
    with pytest.raises(DataError, match="has 16 bits a channel"):
        read_image(path)


def test_32_bit_integers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="has 32 bits a channel"):
        read_image(tmp_path / "a.tif")


def test_floating_point_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds floating-point values; scale"):
        read_image(tmp_path / "a.tif")


def test_nan_is_named(tmp_path: Path) -> None:
    array = GREY.astype(np.float32)
    array[3, 4] = np.nan
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif contains NaN"):
        read_image(tmp_path / "a.tif")


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(DataError, match="holds several pictures"):
        read_image(tmp_path / "a.tif")
    deep = Image.fromarray(GREY.astype(np.uint16) * 100)
    deep.save(tmp_path / "deep.tif", save_all=True, append_images=[deep])
    with pytest.raises(DataError, match="holds several pictures"):
        read_numbers(tmp_path / "deep.tif")


def test_a_palette_that_is_too_short_is_damaged(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 200]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0])
    with pytest.raises(DataError, match=r"the palette of x\.bmp lacks colour 200"):
        _is_black_and_white(Path("x.bmp"), picture)


@pytest.mark.parametrize("limit", [120, 50])  # Pillow warns above its limit, and raises above twice that
def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="million pixels; cut it into tiles"):
        read_image(tmp_path / "a.png")


def test_list_images_is_sorted_and_leaves_out_what_is_no_visible_image(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.tiff", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]


def test_list_images_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot list the folder .*nowhere"):
        list_unread(tmp_path / "nowhere")


@pytest.mark.parametrize("array", [RGB, GREY, GREY[:, :, None]])
def test_written_png_reads_back(tmp_path: Path, array: np.ndarray) -> None:
    write_png(tmp_path / "new" / "a.png", array)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png").squeeze(), array.squeeze())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_bool_is_written_as_0_and_255(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", GREY > 100)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.where(GREY > 100, 255, 0))


def test_float_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float64"):
        write_png(tmp_path / "a.png", GREY / 255)


def test_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", GREY)


def test_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "a.png", GREY)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(StorageError, match="disk is full"):
        write_png(tmp_path / "a.png", 255 - GREY)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_pictures_in_a_file_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.tif"
    pictures = [Image.new("L", (4, 4)) for _ in range(5)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    looked: list[int] = []
    seek = TiffImageFile._seek

    def look(picture: TiffImageFile, frame: int) -> None:
        looked.append(frame)
        seek(picture, frame)

    monkeypatch.setattr(TiffImageFile, "_seek", look)
    with pytest.raises(DataError, match="several pictures"):
        read_image(path)
    assert max(looked) == 1
