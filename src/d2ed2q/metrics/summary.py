"""Many values as one: means over what is defined, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["defined", "mean", "summary"]


def mean(values: Iterable[float]) -> float:
    """Mean of what is defined; NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over what is defined, and all values; None for what is not defined."""
    known = [value for value in values if not math.isnan(value)]
    return {
        "mean": defined(mean(known)),
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "values": [defined(value) for value in values],
    }


def defined(value: float) -> float | None:
    """The value; None for NaN."""
    return None if math.isnan(value) else float(value)
