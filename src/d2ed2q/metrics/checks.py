"""Checks of what enters the metrics."""

from __future__ import annotations

import numpy as np

from d2ed2q.errors import DataError

__all__ = ["as_binary", "require_classes", "require_probabilities", "require_same_shape"]

_ROUNDING = 1e-5  # what an engine's softmax, or a mean of probabilities, may stray outside [0, 1]


def require_same_shape(**arrays: np.ndarray) -> None:
    """Checks that all arrays, given by name, have the shape of the first.

    Raises:
        DataError: one differs.
    """
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise DataError(
                f"{name} has shape {array.shape}, but {first} has {reference.shape}; "
                f"resample one to the other's size before scoring"
            )


def as_binary(array: np.ndarray, name: str) -> np.ndarray:
    """Takes a mask of booleans or of whole numbers 0 and 1.

    Args:
        array: any shape.
        name: what the array is called in the error message.

    Returns:
        np.ndarray: bool, same shape.

    Raises:
        DataError: it holds anything but 0 and 1.
    """
    array = np.asarray(array)
    if array.dtype == np.bool_:
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} must hold booleans or the whole numbers 0 and 1, not {array.dtype}; threshold it first"
        )
    if array.size and (array.min() < 0 or array.max() > 1):
        wrong = array.max() if array.max() > 1 else array.min()
        raise DataError(f"{name} must hold 0 and 1 only, but holds {wrong}; threshold it first")
    return array.astype(np.bool_)


def require_probabilities(array: np.ndarray, name: str) -> None:
    """Checks that every value lies in [0, 1], but for rounding.

    Raises:
        DataError: a value is outside, or NaN.
    """
    # A NaN makes the minimum NaN, and every comparison with it false.
    if array.size and not (array.min() >= -_ROUNDING and array.max() <= 1 + _ROUNDING):
        raise DataError(
            f"{name} must be probabilities in [0, 1], but range from {array.min()} to {array.max()}; "
            f"apply the sigmoid or softmax to logits first"
        )


def require_classes(labels: np.ndarray, classes: int, name: str) -> None:
    """Checks that labels are class numbers 0…classes−1.

    Raises:
        DataError: they are no whole numbers, or out of range.
    """
    if labels.dtype != np.bool_ and not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name} must be whole class numbers, not {labels.dtype}; convert it with astype(int)")
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels.max() if labels.max() >= classes else labels.min()
        raise DataError(f"{name} holds class {wrong}, but the probabilities have classes 0 to {classes - 1} only")
