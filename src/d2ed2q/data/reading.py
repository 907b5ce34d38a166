"""From the files of one case to arrays on one grid, pictures and volumes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2ed2q.data.images import read_image, read_mask, read_numbers
from d2ed2q.data.volumes import Volume, is_volume, read_volume, require_same_grid
from d2ed2q.errors import DataError

__all__ = ["Channels", "read_channels", "read_on_grid"]


@dataclass(frozen=True)
class Channels:
    """An image as stored.

    Attributes:
        path: its first file.
        values: ``C×H×W`` or ``C×D×H×W``, numbers as stored; uint8 of pictures read as bytes.
        spacing: millimetres along each spatial axis; None of pictures.
        volume: the first file's volume; None of pictures.
    """

    path: Path
    values: np.ndarray
    spacing: tuple[float, ...] | None
    volume: Volume | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The spatial extents."""
        return self.values.shape[1:]


def read_channels(paths: Sequence[Path], as_bytes: bool) -> Channels:
    """Reads the files of an image, one or more channels each.

    Args:
        paths: in the order of the channels.
        as_bytes: whether pictures must have 8 bits, as photographs have.

    Raises:
        DataError: a file cannot be read, or files differ in size, spacing or kind.
    """
    first = _read(paths[0], as_bytes)
    parts = [first.values]
    for path in paths[1:]:
        other = _read(path, as_bytes)
        if first.volume is not None and other.volume is not None:
            require_same_grid(first.volume, other.volume)
        elif first.shape != other.shape:
            raise DataError(
                f"{path} is {_size(other.shape)} pixels, but {paths[0]} is {_size(first.shape)}; resample it"
            )
        parts.append(other.values)
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Channels(first.path, values, first.spacing, first.volume)


def read_on_grid(path: Path, image: Channels) -> np.ndarray:
    """Reads a label or a region on the grid of its image.

    Returns:
        np.ndarray: whole numbers, of the image's spatial shape; uint8 of pictures.

    Raises:
        DataError: the file cannot be read, lies on another grid, or holds fractions.
    """
    if is_volume(path):
        label = read_volume(path)
        if image.volume is None:
            raise DataError(f"{path} is a volume, but its image {image.path} is a picture; save both alike")
        require_same_grid(image.volume, label)
        values = label.values[0]
        if len(label.values) > 1:
            raise DataError(f"{path} has {len(label.values)} channels; a label has one, of class numbers")
        whole: np.ndarray = values.astype(np.int32)
        if values.dtype.kind == "f" and not np.array_equal(whole, values):
            raise DataError(f"{path} holds fractions; a label holds whole class numbers")
        return whole
    values = read_mask(path)
    if values.shape != image.shape:
        raise DataError(
            f"{path} is {_size(values.shape)} pixels, but its image {image.path} is "
            f"{_size(image.shape)}; export it at the image's own size"
        )
    return values


def _read(path: Path, as_bytes: bool) -> Channels:
    if is_volume(path):
        volume = read_volume(path)
        return Channels(path, volume.values, volume.spacing, volume)
    values = read_image(path) if as_bytes else read_numbers(path)
    return Channels(path, np.ascontiguousarray(values.transpose(2, 0, 1)), None, None)


def _size(shape: Sequence[int]) -> str:
    """Width first, as programs show it."""
    return "×".join(map(str, reversed(shape)))
