"""Figures that need no threshold, and the best threshold: ROC, precision–recall, Dice over all thresholds.

All of them depend on the scores' order only, and change only where the threshold passes the score of a positive pixel.
:class:`Ranking` sorts once and answers them all, exactly, ties included.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.metrics.checks import as_binary, require_same_shape

__all__ = [
    "PrecisionRecallCurve",
    "Ranking",
    "RocCurve",
    "average_precision",
    "best_dice_threshold",
    "precision_recall_curve",
    "roc_auc",
    "roc_curve",
]


class RocCurve(NamedTuple):
    """A receiver operating characteristic; straight lines between neighbouring points."""

    fpr: np.ndarray
    """False-positive rate (1 − specificity), float64, rising from 0 to 1; NaN without negatives."""
    tpr: np.ndarray
    """True-positive rate (sensitivity), float64, rising from 0 to 1; NaN without positives."""


class PrecisionRecallCurve(NamedTuple):
    """A precision–recall curve; between two points it is not a straight line (Davis & Goadrich 2006)."""

    precision: np.ndarray
    """Float64 in [0, 1]."""
    recall: np.ndarray
    """Float64, rising to 1; empty without positives."""


class Ranking:
    """Binary scores, sorted once.

    Args:
        scores: any shape, any real dtype, larger means more likely positive; finite. Integers and 16-bit floats
            are ranked as float32 or float64, whichever holds them (64-bit integers: as float64).
        labels: same shape, booleans or 0 and 1.

    Attributes:
        positives: number of positive pixels.
        negatives: number of negative pixels.
        thresholds: the distinct scores of positive pixels, falling; the following arrays go with it.
        true_positives: positives with score ≥ threshold, int64.
        false_positives: negatives with score ≥ threshold, int64.
        false_positives_above: negatives with score > threshold, int64; smaller than ``false_positives`` only in ties.

    Raises:
        DataError: shapes differ, a score is NaN or infinite, or labels hold anything but 0 and 1.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        scores = np.asarray(scores)
        truth = as_binary(labels, "labels")
        require_same_shape(scores=scores, labels=truth)
        if scores.dtype not in (np.float32, np.float64):
            scores = scores.astype(np.result_type(scores.dtype, np.float32))
        scores, truth = scores.reshape(-1), truth.reshape(-1)
        # Two sorts of bare values are several times faster than one argsort that drags the labels along.
        ascending = np.sort(scores[truth])
        self._negative_scores = np.sort(scores[~truth])
        for values in (ascending, self._negative_scores):
            if values.size and not np.isfinite(values[[0, -1]]).all():  # NaN sorts to the end
                raise DataError("scores hold NaN or infinity; look for a network whose output is not finite")
        self.positives, self.negatives = len(ascending), len(self._negative_scores)
        differs = np.ones(self.positives, np.bool_)  # from the one before; the first always does
        np.not_equal(ascending[1:], ascending[:-1], out=differs[1:])
        first = np.flatnonzero(differs)
        distinct = ascending[first]
        self.thresholds = distinct[::-1]
        self.true_positives = (self.positives - first)[::-1]
        self.false_positives = (self.negatives - np.searchsorted(self._negative_scores, distinct, "left"))[::-1]
        self.false_positives_above = (self.negatives - np.searchsorted(self._negative_scores, distinct, "right"))[::-1]

    @property
    def _ties(self) -> np.ndarray:
        """Positives at exactly each threshold."""
        return np.diff(self.true_positives, prepend=0)

    def roc_auc(self) -> float:
        """Area under the ROC curve: how probably a positive outranks a negative, ties counting one half.

        Returns:
            float: exact (Mann–Whitney U), in [0, 1]; NaN where one of the classes is missing.
        """
        if not self.positives or not self.negatives:
            return float("nan")
        # Twice the wins, so that halves stay whole numbers.
        wins = 2 * self.negatives - self.false_positives - self.false_positives_above
        return int((self._ties * wins).sum()) / (2 * self.positives * self.negatives)

    def average_precision(self) -> float:
        """Average precision: Σ (R_n − R_{n−1})·P_n over all distinct thresholds, without interpolation.

        Returns:
            float: in [0, 1]; NaN without positives.
        """
        if not self.positives:
            return float("nan")
        return float((self._ties * self._precision()).sum() / self.positives)

    def _precision(self) -> np.ndarray:
        return self.true_positives / (self.true_positives + self.false_positives)

    def roc_curve(self, points: int = 512) -> RocCurve:
        """The ROC curve.

        Args:
            points: at most this many; a longer curve is thinned to points evenly spread along it, ends kept. A curve
                that needs no thinning holds every corner: its trapezoids add up to :meth:`roc_auc`.

        Returns:
            RocCurve: from (0, 0) to (1, 1).

        Raises:
            ConfigError: fewer than four points.
        """
        _require_points(points)
        tp, fp = self.true_positives, self.false_positives
        along = tp / max(self.positives, 1) + fp / max(self.negatives, 1)
        keep = _evenly(along, (points - 2) // 2)
        # Each kept threshold brings the corner just before it: the negatives above, with the positives above.
        before = np.stack((self.false_positives_above, tp - self._ties), axis=1)[keep]
        at = np.stack((fp, tp), axis=1)[keep]
        inner = np.stack((before, at), axis=1).reshape(-1, 2)
        vertices = np.concatenate(([[0, 0]], inner, [[self.negatives, self.positives]]))
        repeated = np.append(False, (np.diff(vertices, axis=0) == 0).all(1))
        fpr, tpr = vertices[~repeated].T
        return RocCurve(_rate(fpr, self.negatives), _rate(tpr, self.positives))

    def precision_recall_curve(self, points: int = 512) -> PrecisionRecallCurve:
        """The precision–recall curve at the positives' distinct scores, without an artificial starting point.

        Args:
            points: at most this many; a longer curve is thinned to points evenly spread in recall, ends kept.

        Returns:
            PrecisionRecallCurve: by rising recall, that is falling threshold.

        Raises:
            ConfigError: fewer than four points.
        """
        _require_points(points)
        keep = _evenly(self.true_positives.astype(np.float64), points)
        return PrecisionRecallCurve(self._precision()[keep], self.true_positives[keep] / max(self.positives, 1))

    def best_dice_threshold(self) -> tuple[float, float]:
        """The threshold with the highest Dice of ``scores > threshold``, exact over all distinct scores.

        The threshold lies halfway between the lowest score that is taken and the highest that is not, both as seen
        in the scores' own precision; among equals the highest wins.

        Returns:
            tuple[float, float]: threshold and Dice in [0, 1]. Without positives: the highest score, which gives an
            empty mask and Dice 1 (or 0.5 where there are no scores at all).
        """
        if not self.positives:
            return (float(self._negative_scores[-1]) if self.negatives else 0.5), 1.0
        dice = 2 * self.true_positives / (self.true_positives + self.false_positives + self.positives)
        best = int(np.argmax(dice))
        return self._just_below(best), float(dice[best])

    def _just_below(self, index: int) -> float:
        """A value that the score ``thresholds[index]`` exceeds, and no lower score does."""
        taken = self.thresholds[index]
        lower = [self.thresholds[index + 1]] if index + 1 < len(self.thresholds) else []
        rank = self.negatives - int(self.false_positives[index])
        if rank:
            lower.append(self._negative_scores[rank - 1])
        if not lower:  # every pixel is positive; a step that stays clear of denormal numbers
            return float(taken - np.spacing(max(abs(taken), taken.dtype.type(1))))
        left = max(lower)
        middle = taken.dtype.type(0.5 * float(left) + 0.5 * float(taken))
        # Between neighbouring floats the middle rounds to one of them; the lower one separates them as well.
        return float(middle if left <= middle < taken else left)


def _require_points(points: int) -> None:
    if points < 4:
        raise ConfigError(f"a curve needs at least 4 points, got points={points}")


def _rate(count: np.ndarray, total: int) -> np.ndarray:
    return count / total if total else np.full(len(count), np.nan)


def _evenly(progress: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most ``points`` entries of rising ``progress``, evenly spread in its value, both ends kept."""
    if len(progress) <= points:
        return np.arange(len(progress))
    if points == 1:
        return np.array([len(progress) // 2])
    keep = np.searchsorted(progress, np.linspace(progress[0], progress[-1], points))
    keep[-1] = len(progress) - 1
    return np.unique(keep)


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve; see :meth:`Ranking.roc_auc`."""
    return Ranking(scores, labels).roc_auc()


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision; see :meth:`Ranking.average_precision`."""
    return Ranking(scores, labels).average_precision()


def roc_curve(scores: np.ndarray, labels: np.ndarray, points: int = 512) -> RocCurve:
    """The ROC curve; see :meth:`Ranking.roc_curve`."""
    return Ranking(scores, labels).roc_curve(points)


def precision_recall_curve(scores: np.ndarray, labels: np.ndarray, points: int = 512) -> PrecisionRecallCurve:
    """The precision–recall curve; see :meth:`Ranking.precision_recall_curve`."""
    return Ranking(scores, labels).precision_recall_curve(points)


def best_dice_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest Dice, and that Dice; see :meth:`Ranking.best_dice_threshold`."""
    return Ranking(scores, labels).best_dice_threshold()
