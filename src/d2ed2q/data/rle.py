"""RLE Lossless (PS3.5 G): how much comes out of it is counted before anything is unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2ed2q.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["check_rle", "unpacked_size"]

_MOST_SEGMENTS = 15


def check_rle(dataset: Dataset, name: str) -> None:
    """Checks that the one frame of an image gives no more bytes than the image has: two bytes may say 128.

    Raises:
        DataError: it gives more, or its segments are not where its header says.
    """
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    extents = int(dataset.Rows) * int(dataset.Columns)
    if len(frame) < 64:
        raise DataError(f"the RLE header of {name} is cut off")
    count = int.from_bytes(frame[:4], "little")
    wanted = int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
    if count != wanted or count > _MOST_SEGMENTS:
        raise DataError(f"{name} has {count} RLE segments, not {wanted}")
    offsets = [int.from_bytes(frame[4 + 4 * i : 8 + 4 * i], "little") for i in range(count)]
    for start, end in zip(offsets, [*offsets[1:], len(frame)], strict=True):
        if not 64 <= start <= end <= len(frame):
            raise DataError(f"the RLE segments of {name} are not where its header says")
        if unpacked_size(frame[start:end], extents + 1) > extents + 1:  # one byte may pad it to an even length
            raise DataError(f"an RLE segment of {name} gives more than the {extents:,} bytes that it should")


def unpacked_size(segment: bytes, most: int) -> int:
    """How many bytes a segment gives (PS3.5 G.3.2), or a number above ``most`` as soon as it is clear."""
    size = position = 0
    while position < len(segment) - 1 and size <= most:
        code = segment[position]
        if code < 128:  # so many bytes and one more, as they are
            size += code + 1
            position += code + 2
        elif code > 128:  # the next byte, so often
            size += 257 - code
            position += 2
        else:  # nothing
            position += 1
    return size
