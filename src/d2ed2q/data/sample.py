"""What the data room hands out: one image with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """One image with its label and its region of interest.

    Attributes:
        image: float32, ``C×H×W`` or, of a volume, ``C×D×H×W``, values in [0, 1].
        label: int64, ``H×W`` or ``D×H×W``, class numbers 0…n−1 with 0 the background; None where there is no ground
            truth.
        roi: bool, the label's shape, True inside the region of interest; None where the set has none (every pixel
            counts).
        id: the case's name, unique within its dataset.
        patient: the patient the image belongs to; equal to ``id`` where no patient is known.
        spacing: millimetres per pixel along (H, W) or (D, H, W); None where unknown.
        objects: int64, the label's shape, a number for each object of the foreground, 0 outside; None where the set
            does not tell objects apart.
    """

    image: Tensor
    label: Tensor | None
    roi: Tensor | None
    id: str
    patient: str
    spacing: tuple[float, ...] | None = None
    objects: Tensor | None = None
