"""From the files of one case to arrays on one grid, pictures and volumes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2ed2q.data.images import list_images, read_image, read_mask, read_numbers
from d2ed2q.data.volumes import Volume, is_volume, list_volumes, read_volume, require_same_grid
from d2ed2q.errors import DataError

__all__ = [
    "Channels",
    "Label",
    "join_channels",
    "list_files",
    "read_channels",
    "read_label",
    "read_on_grid",
    "require_on_grid",
]

_OFF = 1e-4


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


@dataclass(frozen=True)
class Label:
    """A label or a region of interest as stored.

    Attributes:
        path: its file.
        values: whole numbers ``H×W`` or ``D×H×W``; uint8 of pictures.
        volume: where it lies; None of pictures.
    """

    path: Path
    values: np.ndarray
    volume: Volume | None


def read_channels(paths: Sequence[Path], as_bytes: bool) -> Channels:
    """Reads the files of an image, one or more channels each.

    Args:
        paths: in the order of the channels.
        as_bytes: whether the files must be pictures of 8 bits, as photographs are.

    Raises:
        DataError: a file cannot be read, or files differ in size, spacing or kind.
    """
    return join_channels([_read(path, as_bytes) for path in paths])


def join_channels(parts: Sequence[Channels]) -> Channels:
    """Makes one image of several that lie on one grid.

    Raises:
        DataError: they differ in size, spacing or kind.
    """
    first, *others = parts
    for other in others:
        if (first.volume is None) != (other.volume is None):
            raise DataError(f"{other.path} and {first.path} are a picture and a volume; save all channels alike")
        if first.volume is not None and other.volume is not None:
            require_same_grid(first.volume, other.volume)
        elif first.shape != other.shape:
            raise DataError(
                f"{other.path} is {_size(other.shape)} pixels, but {first.path} is {_size(first.shape)}; resample it"
            )
    values = np.concatenate([part.values for part in parts]) if others else first.values
    return Channels(first.path, values, first.spacing, first.volume)


def read_label(path: Path) -> Label:
    """Reads a label or a region without its image.

    Raises:
        DataError: the file cannot be read, has several channels, or holds fractions.
    """
    if not is_volume(path):
        return Label(path, read_mask(path), None)
    volume = read_volume(path)
    return Label(path, _whole(volume), volume)


def read_on_grid(path: Path, image: Channels) -> np.ndarray:
    """Reads a label or a region on the grid of its image.

    Returns:
        np.ndarray: whole numbers, of the image's spatial shape; uint8 of pictures.

    Raises:
        DataError: the file cannot be read, lies on another grid, or holds fractions.
    """
    label = read_label(path)
    require_on_grid(label, image)
    return label.values


def require_on_grid(label: Label, image: Channels) -> None:
    """Checks that a label lies on the grid of its image.

    Raises:
        DataError: it does not.
    """
    if (label.volume is None) != (image.volume is None):
        raise DataError(f"{label.path} and its image {image.path} are a picture and a volume; save both alike")
    if label.volume is not None and image.volume is not None:
        require_same_grid(image.volume, label.volume)
    elif label.values.shape != image.shape:
        raise DataError(
            f"{label.path} is {_size(label.values.shape)} pixels, but its image {image.path} is "
            f"{_size(image.shape)}; export it at the image's own size"
        )


def list_files(folder: Path) -> tuple[Path, ...]:
    """The pictures and volumes of a folder, sorted by name.

    Raises:
        DataError: there is no such folder.
    """
    return tuple(sorted((*list_images(folder), *list_volumes(folder))))


def _whole(label: Volume) -> np.ndarray:
    if len(label.values) > 1:
        raise DataError(f"{label.path} has {len(label.values)} channels; a label has one, of class numbers")
    values = label.values[0]
    whole: np.ndarray = np.rint(values).astype(np.int32) if values.dtype.kind == "f" else values.astype(np.int32)
    # Scaling by a header's factor may leave class numbers a little off.
    if values.dtype.kind == "f" and np.abs(whole - values).max() > _OFF:
        raise DataError(f"{label.path} holds fractions; a label holds whole class numbers")
    return whole


def _read(path: Path, as_bytes: bool) -> Channels:
    if is_volume(path):
        if as_bytes:
            raise DataError(f"{path} is a volume among pictures; keep them in sets of their own")
        volume = read_volume(path)
        return Channels(path, volume.values, volume.spacing, volume)
    values = read_image(path) if as_bytes else read_numbers(path)
    return Channels(path, np.ascontiguousarray(values.transpose(2, 0, 1)), None, None)


def _size(shape: Sequence[int]) -> str:
    """Width first, as programs show it."""
    return "×".join(map(str, reversed(shape)))
