"""What the values of a mask file mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from d2ed2q.errors import DataError

__all__ = ["Classes", "MaskRule", "check_values", "distinct", "is_lossy", "merge_masks", "shown", "to_label"]

_NEAR = 31  # how far a palette or an export may move black and white


class MaskRule(Enum):
    """What the values of a mask file mean."""

    THRESHOLD = "threshold"
    """Every value is near 0 or near 255 (palettes with 3 and 253 exist); above 127 is foreground."""
    BINARY = "binary"
    """Values 0 and 255, or 0 and 1; in JPEG files, which blur edges, above 127 is foreground."""
    CLASSES = "classes"
    """Values are class numbers 0…n−1."""
    OBJECTS = "objects"
    """Values number the objects of one foreground class; 0 is background."""


@dataclass(frozen=True)
class Classes:
    """What the values of all masks together mean.

    Attributes:
        rule: how a mask is read.
        names: the classes, the background first.
        problems: one sentence for each mask that does not fit the others.
        ignore: value of pixels that do not count; None where there is none.
    """

    rule: MaskRule
    names: tuple[str, ...]
    problems: Mapping[Path, str]
    ignore: int | None = None


def is_lossy(path: Path) -> bool:
    """Whether a file is of a format that does not keep the values it is given."""
    return path.suffix.lower() in (".jpg", ".jpeg")


def to_label(values: np.ndarray, rule: MaskRule, n_classes: int, path: Path) -> np.ndarray:
    """Turns the values of a mask file into class numbers.

    Args:
        values: whole numbers ``H×W`` or ``D×H×W``, as stored in the file.
        rule: what they mean.
        n_classes: number of classes, the background included.
        path: the file, for the message and for its format.

    Returns:
        np.ndarray: int64 of the same shape, values 0…n_classes−1.

    Raises:
        DataError: a value that the rule does not allow.
    """
    check_values(distinct(values), rule, n_classes, path)
    if rule is MaskRule.CLASSES:
        return values.astype(np.int64)
    if rule is MaskRule.OBJECTS or (rule is MaskRule.BINARY and not is_lossy(path)):
        return (values > 0).astype(np.int64)
    return (values > 127).astype(np.int64)


def merge_masks(masks: Sequence[np.ndarray], names: Sequence[str], image: Path) -> np.ndarray:
    """Makes one label of binary masks, one for each foreground class.

    Args:
        masks: ``H×W``, anything but 0 is foreground; all of one shape.
        names: of their classes, for the message.
        image: what they belong to, for the message.

    Returns:
        np.ndarray: int64 ``H×W``, class numbers 0…len(masks).

    Raises:
        DataError: a pixel is in several classes.
    """
    label = np.zeros(masks[0].shape, np.int64)
    for number, mask in enumerate(masks, start=1):
        both = label[mask > 0]
        if both.any():
            other = names[int(both.max()) - 1]
            raise DataError(
                f"{np.count_nonzero(both)} pixels of {image} are in the class {other!r} and in the class "
                f"{names[number - 1]!r}; a pixel has one class, so correct one of the masks"
            )
        label[mask > 0] = number
    return label


def distinct(values: np.ndarray) -> frozenset[int]:
    """The values that occur in a mask of whole numbers."""
    if values.dtype == np.uint8:
        return frozenset(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
    return frozenset(np.unique(values).tolist())


def check_values(found: Collection[int], rule: MaskRule, n_classes: int, path: Path) -> None:
    """Checks the values that occur in a mask file.

    Raises:
        DataError: a value that the rule does not allow.
    """
    found = frozenset(found)
    if rule is MaskRule.OBJECTS:
        return
    if rule is MaskRule.CLASSES:
        if max(found) >= n_classes or min(found) < 0:
            wrong = max(found) if max(found) >= n_classes else min(found)
            raise DataError(f"the mask {path} has value {wrong}, more than {n_classes} classes allow; correct it")
    elif rule is MaskRule.BINARY:
        if not (is_lossy(path) or found <= {0, 1} or found <= {0, 255}):
            raise DataError(f"the mask {path} has values {shown(found)}; a binary mask has 0 and 255, or 0 and 1")
    else:
        astray = [value for value in found if _NEAR < value < 255 - _NEAR]
        if astray:
            raise DataError(f"the mask {path} has values {shown(astray)} where all are near 0 or 255; export it again")
        if found == {0, 1}:
            raise DataError(f"the mask {path} has values 0 and 1 where this dataset has 0 and 255; multiply it by 255")


def shown(values: Iterable[int]) -> str:
    """The first few of some mask values, for a message."""
    numbers = sorted(values)
    return ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")
