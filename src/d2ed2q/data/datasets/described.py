"""What the layouts with a ``dataset.json`` share: classes, channels and intensities as the file words them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.scan import Scan
from d2ed2q.data.fingerprint import evenly_spread
from d2ed2q.data.intensity import BYTE, PERCENTILE, Intensity, foreground_window
from d2ed2q.data.masks import Classes, MaskRule
from d2ed2q.data.reading import Channels, read_channels, read_on_grid
from d2ed2q.errors import DataError

__all__ = ["Description", "described_dataset", "read_content", "read_description"]

_FOR_WINDOW = 20  # cases; the window of more does not differ
_LONGEST_TITLE = 60


@dataclass(frozen=True)
class Description:
    """A ``dataset.json``.

    Attributes:
        path: the file.
        content: all of it.
        classes: names in the order of their numbers, the background first.
        ignore: the number of pixels that do not count, as nnU-Net has it; None where there is none.
        channels: names of the channels in order.
    """

    path: Path
    content: Mapping[str, Any]
    classes: tuple[str, ...]
    ignore: int | None
    channels: tuple[str, ...]

    @property
    def masks(self) -> Classes:
        """What the values of labels mean."""
        return Classes(MaskRule.CLASSES, self.classes, {}, self.ignore)


def read_content(root: Path) -> dict[str, Any]:
    """Reads ``dataset.json`` as it is.

    Raises:
        DataError: it is missing or no JSON object.
    """
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no JSON object; restore it")
    return content


def read_description(root: Path) -> Description:
    """Reads ``dataset.json`` as the Decathlon (``modality``) and nnU-Net (``channel_names``) write it.

    Raises:
        DataError: it is missing, no JSON object, or lacks channels or labels that can be used.
    """
    path = root / "dataset.json"
    content = read_content(root)
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise DataError(f"{path} names no channels; add channel_names (nnU-Net) or modality (Decathlon)")
    numbers = _class_numbers(path, content.get("labels"))
    ignore = numbers.pop("ignore", None)
    names = sorted(numbers, key=lambda name: numbers[name])
    if sorted(numbers.values()) != list(range(len(numbers))) or len(numbers) < 2:
        raise DataError(
            f"{path} numbers its labels {sorted(numbers.values())}; number them 0…n−1 without gaps, background first"
        )
    order = sorted(channels, key=lambda key: int(key) if str(key).isdigit() else 0)
    return Description(path, content, tuple(names), ignore, tuple(str(channels[key]) for key in order))


def _class_numbers(path: Path, labels: Any) -> dict[str, int]:
    """Name → number, from nnU-Net's ``{name: number}`` or the Decathlon's ``{number: name}``."""
    if not isinstance(labels, dict):
        raise DataError(f"{path} has no labels; add a table of names and numbers")
    numbers = {}
    for key, value in labels.items():
        if isinstance(value, (list, tuple)):
            raise DataError(f"{path}: the label {key!r} is a region of several numbers; give each class one number")
        name, number = (str(value), key) if str(key).isdigit() and not str(value).isdigit() else (str(key), value)
        if not str(number).isdigit() or name in numbers:
            raise DataError(f"{path}: the label {key!r}: {value!r} is no name with one number; correct it")
        numbers[name] = int(number)
    return numbers


def described_dataset(name: str, root: Path, scan: Scan, description: Description) -> Dataset:
    """Makes a dataset of a scan without problems; the first image tells dimensions and channels.

    Raises:
        DataError: the scan has a problem, or the first image cannot be read.
    """
    if scan.problems:
        more = len(scan.problems) - 1
        raise DataError(scan.problems[0] + (f" (and {more} more; d2ed2q data check {root} lists them)" if more else ""))
    first = (scan.train or scan.test)[0]
    image = read_channels(first.channel_files, as_bytes=False)
    if len(image.values) < len(description.channels):
        raise DataError(
            f"{first.image} has {len(image.values)} channels, but {description.path} names {len(description.channels)} "
            f"({', '.join(description.channels)}); add the files of the others, or correct that file"
        )
    classes = description.masks
    return Dataset(
        name,
        root,
        classes.names,
        len(image.values),
        scan.train,
        scan.test,
        classes.rule,
        tubular=False,
        dims=len(image.shape),
        intensity=_intensity(scan.train, description, image),
        ignore=classes.ignore,
        notes=scan.notes,
        title=" ".join(str(description.content.get("name", "")).split())[:_LONGEST_TITLE],
        terms=str(description.content.get("licence", description.content.get("license", ""))),
    )


def _intensity(cases: Sequence[Case], description: Description, image: Channels) -> Intensity:
    if any(channel.strip().lower() == "ct" for channel in description.channels):
        return _foreground_window(evenly_spread(cases, _FOR_WINDOW), description.ignore)
    # A volume of whole numbers up to 255 is no photograph: another of the same scanner may go further.
    return BYTE if image.values.dtype == np.uint8 and image.volume is None else PERCENTILE


def _foreground_window(cases: Sequence[Case], ignore: int | None) -> Intensity:
    values: list[list[np.ndarray]] = []
    for case in cases:
        if case.label is None:
            continue
        image = read_channels(case.channel_files, as_bytes=False)
        label = read_on_grid(case.label, image)
        inside = (label > 0) & (label != ignore)
        if inside.any():
            values.append([channel[inside] for channel in image.values])
        if values and len(values[0]) != len(values[-1]):
            raise DataError(f"{case.image} has another number of channels than the others; save all alike")
    return foreground_window([list(channel) for channel in zip(*values, strict=True)]) if values else PERCENTILE
