"""Netpbm files (PBM, PGM, PPM), as old datasets have them, often gzipped; no more is unpacked than is needed."""

from __future__ import annotations

import gzip
import re
from io import BytesIO
from pathlib import Path
from typing import IO, cast

from PIL import Image

from d2ed2q.errors import DataError

__all__ = ["NETPBM", "is_netpbm", "open_netpbm"]

NETPBM = frozenset({".pbm", ".pgm", ".pnm", ".ppm"})
_HEADER_BYTES = 64 * 1024  # comments included; a header without any takes about 15
_TEXT_BYTES = 8  # of one number in the text forms, spaces included
# Magic number, width, height and, of all but bitmaps, the value that stands for white; a comment ends with its line.
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_START = re.compile(rb"P([1-6])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})")
_WHITE = re.compile(_SPACE + rb"(\d{1,9})")


def is_netpbm(path: Path) -> bool:
    """Whether a name ends like a Netpbm file's, packed or not."""
    return Path(path.name.lower().removesuffix(".gz")).suffix in NETPBM


def open_netpbm(path: Path) -> BytesIO:
    """Reads a Netpbm file, and unpacks it if its name ends in ``.gz``.

    Returns:
        BytesIO: the file's bytes, neither more nor fewer than its header asks for.

    Raises:
        DataError: no such header, more than 8 bits a channel, too many pixels, or bytes that do not fit the header.
        OSError, EOFError, zlib.error: the file cannot be read or unpacked.
    """
    with _opened(path) as file:
        start = file.read(_HEADER_BYTES)
        least, most = _expected(path, start)
        content = start + file.read(max(0, most + 1 - len(start)))
    if len(content) < least:
        raise DataError(f"{path} is truncated or damaged (its pixels are not complete); restore it from the original")
    if len(content) > most:
        raise DataError(f"{path} holds more than the picture that its header describes; restore it from the original")
    return BytesIO(content)


def _opened(path: Path) -> IO[bytes]:
    packed = path.name.lower().endswith(".gz")
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else open(path, "rb")


def _expected(path: Path, start: bytes) -> tuple[int, int]:
    """Least and greatest number of bytes of a file that starts like this."""
    header = _START.match(start)
    if header is None:
        raise DataError(f"{path} is not an image that can be read; save it as PNG, JPEG, TIFF, BMP or GIF")
    kind, width, height = (int(number) for number in header.groups())
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DataError(f"{path} has more than {limit} million pixels; cut it into tiles or scale it down")
    end = header.end()
    if kind not in (1, 4):
        white = _WHITE.match(start, end)
        # With another white the values would be stretched, and class numbers or object numbers with them.
        if white is None or int(white.group(1)) != 255:
            found = "no value" if white is None else white.group(1).decode()
            raise DataError(f"{path} has {found} for white; save it with 8 bits a channel, where white is 255")
        end = white.end()
    samples = width * height * (3 if kind in (3, 6) else 1)
    if kind <= 3:
        return end + 1, end + 1 + _TEXT_BYTES * samples + _HEADER_BYTES
    length = height * ((width + 7) // 8) if kind == 4 else samples
    return end + 1 + length, end + 1 + length + 1  # a newline at the end is harmless
