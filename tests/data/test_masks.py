"""What mask values mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from d2ed2q.data.masks import MaskRule, to_label
from d2ed2q.errors import DataError


def _mask(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


@pytest.mark.parametrize(
    ("rule", "path", "values", "expected"),
    [
        (MaskRule.THRESHOLD, "a.gif", (0, 3, 253, 255), (0, 0, 1, 1)),
        (MaskRule.BINARY, "a.png", (0, 255), (0, 1)),
        (MaskRule.BINARY, "a.png", (0, 1), (0, 1)),
        (MaskRule.BINARY, "a.png", (255, 255), (1, 1)),
        (MaskRule.BINARY, "a.jpg", (0, 4, 127, 128, 250), (0, 0, 0, 1, 1)),
        (MaskRule.CLASSES, "a.png", (0, 2, 1), (0, 2, 1)),
    ],
)
def test_values_become_classes(rule: MaskRule, path: str, values: tuple[int, ...], expected: tuple[int, ...]) -> None:
    label = to_label(_mask(*values), rule, 3, Path(path))
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label[0], expected)


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (MaskRule.THRESHOLD, (0, 100, 255), "has values 100 where all are near 0 or 255"),
        (MaskRule.THRESHOLD, (0, 1), "values 0 and 1 where this dataset has 0 and 255"),
        (MaskRule.BINARY, (0, 1, 255), "has values 0, 1, 255; a binary mask has"),
        (MaskRule.BINARY, (0, 2), "has values 0, 2"),
        (MaskRule.CLASSES, (0, 3), "has value 3, more than 3 classes allow"),
    ],
)
def test_other_values_are_refused(rule: MaskRule, values: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_label(_mask(*values), rule, 3, Path("a.png"))
