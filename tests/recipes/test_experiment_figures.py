"""Differences between rows of a table, as they are written."""

from __future__ import annotations

import pytest

from d2ed2q.recipes.experiment_figures import difference


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "–"),
        ([-0.0123], "−0.0123"),
        ([-0.00002], "−0.00002"),
        ([0.0123, 0.0125], "+0.0124 ± 0.0001"),
        ([0.01, 0.03], "+0.0200 ± 0.0141, no difference seen"),
        # A deviation of 0.0000 would make everything of a ten-thousandth.
        ([0.00011, 0.00014, 0.00019], "+0.00015 ± 0.00004"),
        ([0.0, 0.0], "+0.00000 ± 0.00000"),
    ],
)
def test_a_difference_has_the_digits_that_its_deviation_needs(values: list[float], text: str) -> None:
    assert difference(values) == text
