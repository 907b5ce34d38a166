"""JPEG, JPEG-LS and JPEG 2000 inside DICOM: what a stream says of its size is read before anything is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2ed2q.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_codestream", "stream_shape"]

# Start-of-frame markers (ITU-T T.81 table B.1, and T.87 C.1.1 for JPEG-LS), and those that stand alone.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_SIZE_2000 = b"\xff\x4f\xff\x51"  # start of codestream and size (ITU-T T.800 A.4.1, A.5.1), of JPH too


def check_codestream(dataset: Dataset, name: str) -> None:
    """Checks that the one frame of a compressed image is as large as the image: a few bytes may say 65535 × 65535.

    Raises:
        DataError: it is of another size.
    """
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    found = stream_shape(get_frame(dataset.PixelData, 0, number_of_frames=1))
    wanted = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    if found is not None and found != wanted:
        said, held = (f"{columns}×{rows} pixels of {samples} samples" for rows, columns, samples in (wanted, found))
        raise DataError(f"{name} is damaged: its header says {said}, its pixel data {held}")


def stream_shape(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 stream; None where it is none of these."""
    if stream[:2] == b"\xff\xd8":
        return _of_frame(stream)
    start = stream.find(_SIZE_2000, 0, 4096)  # in a file's boxes, or at once
    if start < 0 or len(stream) < start + 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return bottom - top, right - left, int.from_bytes(stream[start + 40 : start + 42], "big")


def _of_frame(stream: bytes) -> tuple[int, int, int] | None:
    at = 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            return None
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _ALONE:
            at += 2
        elif marker in _FRAMES:
            if len(stream) < at + 10:
                return None
            rows, columns = (int.from_bytes(stream[at + i : at + i + 2], "big") for i in (5, 7))
            return rows, columns, stream[at + 9]
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
