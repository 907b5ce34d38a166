"""Reading and writing of 8-bit image files; whatever cannot be read without loss or guesswork is refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from d2ed2q.data.netpbm import NETPBM, is_netpbm, open_netpbm
from d2ed2q.errors import DataError
from d2ed2q.files import atomic_path

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "is_grey",
    "list_images",
    "list_unread",
    "read_image",
    "read_mask",
    "read_numbers",
    "stem_of",
    "write_png",
]

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}) | NETPBM
NOT_READ = frozenset(
    {".avif", ".dicom", ".dcm", ".heic", ".jfif", ".jp2", ".mha", ".mhd", ".npy", ".npz", ".nrrd", ".svs", ".webp"}
)
"""Endings of pictures and volumes that datasets are not read from."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF")
_NETPBM_STARTS = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8
# What Pillow's decoders raise on damaged files; SyntaxError is its word for a broken header.
_DECODING = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def read_image(path: Path) -> np.ndarray:
    """Reads a photograph.

    Palettes are resolved to the colours they stand for (to grey if all of them are grey), an opaque alpha channel is
    dropped and the EXIF orientation is applied.

    Returns:
        np.ndarray: uint8 ``H×W×3`` (RGB) or ``H×W×1`` (grey), values 0…255.

    Raises:
        DataError: the file is missing, damaged, or no single 8-bit grey or RGB picture.
    """
    picture = _decode(path)
    if picture.mode == "P":
        picture = picture.convert("L" if _has_grey_palette(picture) else "RGB")
    array = np.array(picture.convert("L") if picture.mode == "1" else picture, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask as the values stored in it; what they mean is for the dataset to say.

    A palette of greys is resolved to its grey values, and so is one of which only near black and near white are used
    (some programs store white as index 0, others put stray colours into the unused entries behind). With any other
    palette the colours are for looking at, and its indices are the values: one with a colour between black and white
    has classes, which this mask may not show. One-bit masks give 0 and 255.

    Returns:
        np.ndarray: uint8 ``H×W``, values 0…255.

    Raises:
        DataError: the file is missing, damaged, or no single 8-bit picture of one channel.
    """
    picture = _decode(path)
    grey = picture.mode == "P" and (_has_grey_palette(picture) or _is_black_and_white(path, picture))
    if picture.mode == "1" or grey:
        picture = picture.convert("L")
    array = np.array(picture, dtype=np.uint8)
    if array.ndim == 3:
        if not (array == array[:, :, :1]).all():
            raise DataError(f"the mask {path} has colours; save it as one channel of class numbers")
        array = array[:, :, 0].copy()
    return array


def read_numbers(path: Path) -> np.ndarray:
    """Reads a picture of any depth as the numbers stored in it.

    Returns:
        np.ndarray: ``H×W×C``; uint8 where 8 bits are stored, else int32 or float32.

    Raises:
        DataError: the file is missing, damaged, or no single grey or RGB picture.
    """
    picture = _decode(path, deep=True)
    if picture.mode == "P":
        picture = picture.convert("L" if _has_grey_palette(picture) else "RGB")
    array = np.array(picture.convert("L") if picture.mode == "1" else picture)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path} contains NaN or infinite values; repair these pixels")
    if array.dtype != np.uint8:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    return array if array.ndim == 3 else array[:, :, None]


def is_grey(path: Path) -> bool:
    """Whether a picture has one channel, as its header says; of what cannot be read, False."""
    try:
        with _opened(path) as file, Image.open(file, formats=FORMATS) as picture:
            return picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;16")
    except (OSError, DataError, *_DECODING):
        return False


def list_images(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, sorted by name; hidden files are left out.

    Raises:
        DataError: there is no such folder.
    """
    return _listed(folder, lambda path: (path.suffix.lower() in EXTENSIONS or is_netpbm(path)) and path.is_file())


def list_unread(folder: Path) -> tuple[Path, ...]:
    """What looks like an image in a folder and is left out by :func:`list_images`: other formats, and dead links.

    Raises:
        DataError: there is no such folder.
    """

    def unread(path: Path) -> bool:
        ending = path.suffix.lower()
        return ending in NOT_READ or (ending in EXTENSIONS and not path.exists())

    return _listed(folder, unread)


def _listed(folder: Path, wanted: Callable[[Path], bool]) -> tuple[Path, ...]:
    try:
        return tuple(sorted(path for path in folder.iterdir() if not path.name.startswith(".") and wanted(path)))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}; check its path") from error


def stem_of(path: Path) -> str:
    """A picture's name without its extension, be it a double one such as ``.ppm.gz``."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def write_png(path: Path, array: np.ndarray) -> None:
    """Writes a PNG file that is either complete or not there.

    Args:
        path: the file; its folder is made if needed.
        array: uint8 ``H×W``, ``H×W×1`` or ``H×W×3``, uint16 ``H×W``, or bool ``H×W`` (written as 0 and 255).

    Raises:
        DataError: the array is no such picture.
        StorageError: the file could not be written; what was there before is untouched.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    if not grey and not (array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3):
        raise DataError(
            f"cannot write {path}: a picture is uint8 of shape H×W or H×W×3, not {array.dtype} of shape {array.shape}"
        )
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def _decode(path: Path, deep: bool = False) -> Image.Image:
    """Opens and fully decodes a file; the result is of mode 1, L, P or RGB (``deep``: I or F too), upright, opaque."""
    if not path.is_file():
        raise DataError(f"there is no image file {path}; check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; restore it from the original data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("error", "Truncated|Corrupt|Damaged", UserWarning)
            with _opened(path) as file, Image.open(file, formats=FORMATS) as picture:
                _refuse_unsupported(path, picture, deep)
                picture.load()
                return _without_alpha(path, ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DataError(f"{path} has more than {limit} million pixels; cut it into tiles or scale it down") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read; save it as PNG, JPEG, TIFF, BMP or GIF") from error
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (*_DECODING, UserWarning) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); restore it from the original data") from error


def _opened(path: Path) -> IO[bytes]:
    """What Pillow reads, by what the file holds, since a node keeps files without an ending.

    It is never a path: files that Pillow can name it maps into memory where it can, and turns TIFFs that lie on their
    side wrongly then.
    """
    if is_netpbm(path):
        return open_netpbm(path)
    file = open(path, "rb")  # noqa: SIM115  # whoever asked closes it
    if not file.read(2).startswith(_NETPBM_STARTS):
        file.seek(0)
        return file
    file.close()
    return open_netpbm(path)


def _refuse_unsupported(path: Path, picture: Image.Image, deep: bool) -> None:
    # The format says the depth before decoding; afterwards Pillow has cut 16-bit colours to 8 bits without a word.
    if deep and (picture.mode in ("F", "I") or picture.mode.startswith("I;16")):
        _refuse_several(path, picture)
        return
    if picture.mode == "F":
        picture.load()
        if np.isnan(np.asarray(picture)).any():
            raise DataError(f"{path} contains NaN; repair these pixels and save it with 8 bits a channel")
        raise DataError(f"{path} holds floating-point values; scale them to 0…255 and save it with 8 bits a channel")
    bits = _bits_per_channel(path, picture)
    if bits > 8:
        raise DataError(f"{path} has {bits} bits a channel; scale its values to 0…255 and save it with 8 bits")
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise DataError(f"{path} is a {picture.mode} image; convert it to RGB or grey")
    _refuse_several(path, picture)


def _refuse_several(path: Path, picture: Image.Image) -> None:
    """Refuses a file of more than one picture; they are not counted, since a small file may have millions."""
    try:
        picture.seek(1)
    except EOFError:
        picture.seek(0)
        return
    raise DataError(f"{path} holds several pictures; save each as a file of its own")


def _bits_per_channel(path: Path, picture: Image.Image) -> int:
    if isinstance(picture, TiffImageFile):
        return int(max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if picture.format == "PNG":
        with open(path, "rb") as file:
            header = file.read(25)
        return int(header[24])  # PNG specification, IHDR: width, height, bit depth after 8 + 8 bytes
    return {"I": 32, "F": 32}.get(picture.mode, 16 if picture.mode.startswith("I;16") else 8)


def _without_alpha(path: Path, picture: Image.Image) -> Image.Image:
    if "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB"):
        alpha = picture.convert("RGBA").getchannel("A")
        opaque = picture
    elif picture.mode in ("LA", "PA", "RGBA"):
        alpha = picture.getchannel("A")
        opaque = picture.convert({"LA": "L", "PA": "P", "RGBA": "RGB"}[picture.mode])
    else:
        return picture
    if alpha.getextrema() != (255, 255):
        raise DataError(f"{path} has transparent pixels; flatten it onto a background and save it without alpha")
    return opaque


def _palette(picture: Image.Image) -> np.ndarray:
    return np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)


def _has_grey_palette(picture: Image.Image) -> bool:
    colours = _palette(picture)
    return bool((colours == colours[:, :1]).all())


def _is_black_and_white(path: Path, picture: Image.Image) -> bool:
    colours, numbers = _palette(picture), np.unique(np.asarray(picture))
    if numbers[-1] >= len(colours):
        raise DataError(f"the palette of {path} lacks colour {numbers[-1]}; the file is damaged")
    plain = np.logical_or((colours <= 31).all(axis=1), (colours >= 224).all(axis=1))
    if numbers[-1] == 0 and colours[0, 0] > 31 and not plain.all():
        return False  # the background alone, which is white in a palette with colours
    ends = numbers if numbers[-1] == 255 else np.arange(numbers[-1] + 1)  # a full palette has its white at the end
    return bool(plain[numbers].all() and plain[ends].all())
