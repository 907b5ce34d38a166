"""Which files ``predict`` takes, and the files that it writes for each image."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from d2ed2q.data import (
    Volume,
    is_volume,
    list_images,
    list_unread,
    list_volumes,
    read_channels,
    read_image,
    volume_name,
    write_png,
    write_volume,
)
from d2ed2q.data.dicom import DicomImage, read_dicom
from d2ed2q.data.images import is_grey, read_numbers, stem_of
from d2ed2q.deploy import Prediction
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.report import as_bytes, as_rgb, overlay, uncertainty_map

DICOM_SUFFIXES = (".dcm", ".dicom")
__all__ = ["DICOM_SUFFIXES", "Input", "find_inputs", "is_complete", "remove_results", "write_results"]

_KINDS = ("mask", "probability", "uncertainty", "overlay")
_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Input:
    """One image to segment.

    Attributes:
        name: what its results are called after.
        files: one, or one for each channel.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def file(self) -> Path:
        """The first file."""
        return self.files[0]

    def result(self, kind: str) -> str:
        """Name of a result: ``mask``, ``probability``, ``uncertainty``, ``overlay`` or ``objects``."""
        return f"{self.name}_{kind}{'.nii.gz' if is_volume(self.file) and kind != 'overlay' else '.png'}"

    @property
    def segmentation(self) -> str:
        """Name of the DICOM segmentation of a DICOM image."""
        return f"{self.name}_segmentation.dcm"

    def read(self, given: InputSpec) -> np.ndarray | Volume | DicomImage:
        """Reads it; a volume, a picture as the model takes it, or a DICOM image.

        Raises:
            DataError: a file cannot be read, or the files do not fit each other.
        """
        if is_volume(self.file):
            image = read_channels(self.files, as_bytes=False)
            assert image.volume is not None  # of a volume's name
            return replace(image.volume, values=image.values)
        if self.file.suffix.lower() in DICOM_SUFFIXES:
            return read_dicom(self.file)
        if len(self.files) > 1:
            values: np.ndarray = read_channels(self.files, as_bytes=given.intensity.rule == "byte").values
            return np.ascontiguousarray(values.transpose(1, 2, 0))
        return read_image(self.file) if given.intensity.rule == "byte" else read_numbers(self.file)


def find_inputs(inputs: Sequence[Path], given: InputSpec) -> list[Input]:
    """The images of files, folders and patterns, in order.

    Raises:
        ConfigError: there is no input.
        DataError: an input is missing or holds no image, a channel is missing, or two images would write results of the
            same name.
    """
    if not inputs:
        raise ConfigError("predict needs at least one image, or a folder of images")
    files: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            found = list(list_volumes(entry))  # one of a single slice is a picture
            if given.dims == 2:
                found += (*list_images(entry), *list_unread(entry))  # DICOM images among them; of others it is said
                if dead := [path for path in found if not path.exists()]:
                    raise DataError(f"{dead[0]} leads nowhere; fetch the file, or remove the link")
            if not found:
                kinds = "NIfTI volumes are" if given.dims == 3 else "PNG, JPEG, TIFF, BMP, GIF, DICOM and NIfTI are"
                raise DataError(f"there is no image in {entry}; {kinds} read")
        elif entry.is_file():
            found = [entry]
        else:
            matches = glob.glob(str(entry), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
            found = [path for path in map(Path, sorted(matches)) if path.is_file()]
            if not found:
                raise DataError(f"there is no file or folder {entry}, and nothing that matches it as a pattern")
        files += found
    taken: dict[str, Input] = {}
    for item in _grouped(list(dict.fromkeys(files)), given.channels):
        other = taken.setdefault(item.name, item)
        if other != item:
            raise DataError(
                f"{other.file} and {item.file} would write results of the same name; predict them into two folders"
            )
    return list(taken.values())


def _grouped(files: Sequence[Path], channels: int) -> list[Input]:
    """Files of one name that end in _0000, _0001, … are the channels of one image, where a model takes several."""
    groups: dict[str, dict[int, Path]] = {}
    singles: dict[str, Path] = {}
    order: list[tuple[str, Path]] = []
    for file in files:
        name = volume_name(file) if is_volume(file) else stem_of(file)
        match = _CHANNEL.fullmatch(name)
        if channels == 1 or match is None:
            order.append((name, file))
            singles[str(file)] = file
        else:
            key = str(file.parent / match.group(1))
            if key not in groups:
                order.append((key, file))
            other = groups.setdefault(key, {}).setdefault(int(match.group(2)), file)
            if other != file:
                raise DataError(f"{other} and {file} have the same name and number; predict them into two folders")
    items = []
    for name, file in order:
        if str(file) in singles:
            items.append(Input(name, (file,)))
            continue
        found = groups[name]
        if _are_photographs(found, channels):
            items += [Input(stem_of(found[number]), (found[number],)) for number in sorted(found)]
            continue
        # One file may hold all channels, as a colour picture does.
        missing = [] if set(found) == {0} else [number for number in range(channels) if number not in found]
        if missing:
            raise DataError(f"{name}_{missing[0]:04d} is missing: the model takes images of {channels} channels")
        items.append(Input(Path(name).name, tuple(found[number] for number in sorted(found))))
    return items


def _are_photographs(found: Mapping[int, Path], channels: int) -> bool:
    """Whether pictures IMG_0001, IMG_0002, … are a camera's numbers and not an image's channels.

    They are if they have colours, or if they are no complete set for a model of RGB, which takes grey ones too.
    """
    if any(is_volume(file) for file in found.values()):
        return False
    return not all(map(is_grey, found.values())) or (channels == 3 and set(found) != set(range(channels)))


def is_complete(out: Path, item: Input, objects: bool) -> bool:
    """Whether all results of an image are there, with its objects where they were told apart."""
    return all((out / item.result(kind)).is_file() for kind in (*_KINDS, *(("objects",) if objects else ())))


def remove_results(out: Path, item: Input) -> None:
    """Removes what an earlier call wrote of an image, the mask first: what has no mask is not done."""
    for name in (*(item.result(kind) for kind in (*_KINDS, "objects")), item.segmentation):
        (out / name).unlink(missing_ok=True)


def write_results(out: Path, item: Input, image: np.ndarray | Volume, prediction: Prediction, binary: bool) -> None:
    """Writes the results of one image; the mask last: where it is, everything is."""
    foreground = prediction.probability[0] if binary else 1 - prediction.probability[0]
    if isinstance(image, Volume):
        if prediction.objects is not None:
            write_volume(out / item.result("objects"), prediction.objects.astype(np.int32), image)
        write_volume(out / item.result("probability"), foreground.astype(np.float32), image)
        write_volume(out / item.result("uncertainty"), prediction.uncertainty.astype(np.float32), image)
        grey, mask = _slice(image.values[0], prediction.mask > 0)
        write_png(out / item.result("overlay"), overlay(as_rgb(grey), mask))
        write_volume(out / item.result("mask"), prediction.mask.astype(np.uint8), image)
        return
    shown = as_rgb(image)
    if prediction.objects is not None:
        write_png(out / item.result("objects"), prediction.objects.astype(np.uint16))
    write_png(out / item.result("probability"), as_bytes(foreground))
    write_png(out / item.result("uncertainty"), uncertainty_map(prediction.uncertainty))
    write_png(out / item.result("overlay"), overlay(shown, prediction.mask > 0))
    write_png(out / item.result("mask"), prediction.mask.astype(np.uint8) * (255 if binary else 1))


def _slice(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axial slice with most foreground, the patient's front up and right side left, as radiologists look at it."""
    if values.ndim == 3:
        index = int(mask.sum((1, 2)).argmax()) if mask.any() else len(values) // 2
        values, mask = values[index], mask[index]
    return values[::-1, ::-1], np.ascontiguousarray(mask[::-1, ::-1])
