"""The four counts of a binary mask against its label, and the figures made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from d2ed2q.metrics.checks import as_binary, require_same_shape

__all__ = ["Confusion", "confusion"]


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of a binary segmentation; two add up to the counts of both images pooled.

    Where a figure's denominator is empty: Dice and IoU are 1 (mask and label agree that there is nothing), all others
    are NaN.

    Attributes:
        tp: positive pixels found.
        fp: negative pixels taken for positive.
        fn: positive pixels missed.
        tn: negative pixels left out.

    Example:
        >>> Confusion(tp=2, fp=1, fn=1, tn=4).accuracy
        0.75
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Confusion) -> Confusion:
        """Counts of both, pooled."""
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def total(self) -> int:
        """Number of pixels."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def dice(self) -> float:
        """Dice coefficient (F1): 2·TP / (2·TP + FP + FN), in [0, 1]; 1 where mask and label are both empty."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, empty=1.0)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard): TP / (TP + FP + FN), in [0, 1]; 1 where both are empty."""
        return _ratio(self.tp, self.tp + self.fp + self.fn, empty=1.0)

    @property
    def accuracy(self) -> float:
        """Fraction of pixels that are right; NaN without pixels."""
        return _ratio(self.tp + self.tn, self.total)

    @property
    def sensitivity(self) -> float:
        """Fraction of positive pixels found (recall): TP / (TP + FN); NaN without positives."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Fraction of negative pixels left out: TN / (TN + FP); NaN without negatives."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient, in [−1, 1]; NaN where mask or label has one value only."""
        # Python's integers do not overflow: the product of four counts of six million pixels needs 91 bits.
        product = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        return _ratio(self.tp * self.tn - self.fp * self.fn, math.sqrt(product))


def _ratio(part: float, whole: float, empty: float = math.nan) -> float:
    return part / whole if whole else empty


def confusion(mask: np.ndarray, label: np.ndarray, roi: np.ndarray | None = None) -> Confusion:
    """Counts a binary mask's pixels against the label.

    Args:
        mask: what was predicted; any shape, booleans or 0 and 1.
        label: the truth, same shape.
        roi: the pixels that count, same shape; None for all.

    Returns:
        Confusion: the four counts.

    Raises:
        DataError: shapes differ, or something holds anything but 0 and 1.
    """
    mask, label = as_binary(mask, "mask"), as_binary(label, "label")
    require_same_shape(mask=mask, label=label)
    if roi is not None:
        roi = as_binary(roi, "roi")
        require_same_shape(mask=mask, roi=roi)
        mask, label = mask[roi], label[roi]
    tp = int(np.count_nonzero(mask & label))
    found, true = int(np.count_nonzero(mask)), int(np.count_nonzero(label))
    return Confusion(tp=tp, fp=found - tp, fn=true - tp, tn=mask.size - found - true + tp)
