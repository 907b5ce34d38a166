"""The figures in kept results: of one view, over seeds, and of two rows seed by seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from d2ed2q.errors import ConfigError

__all__ = ["Seeds", "difference", "figures_of", "margin", "read_kept", "scope_of", "spread"]

Seeds = Sequence[dict[str, Any]]
"""The results of one experiment, by seed."""


def read_kept(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """A kept JSON file.

    Args:
        path: the file.
        keys: what has to be in it.

    Raises:
        ConfigError: it is cut off, or not what it should be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); make it anew, or restore it from a copy") from error
    lacking = [key for key in keys if key not in content] if isinstance(content, dict) else ["an object"]
    if lacking:
        raise ConfigError(f"{path} lacks {', '.join(lacking)}; make it anew, or restore it from a copy")
    return dict(content)


def spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean and standard deviation over seeds; of one seed its value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def figures_of(result: dict[str, Any], weights: str, view: str) -> dict[str, Any]:
    """Figures of one view; weights that were not quantized are full precision.

    Returns:
        dict: by name; empty where these weights, or this view, were not scored.
    """
    scopes = result["few_bit"] if result["bits"] is None else result[weights]
    views = (scopes or {}).get(scope_of(result), {})
    figures: dict[str, Any] = views.get(result["prediction"] if view == "prediction" else view, {})
    return figures


def scope_of(result: dict[str, Any]) -> str:
    """Which pixels are scored: those inside the field of view, where there is one."""
    return "fov" if "fov" in result["few_bit"] else "whole"


def margin(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of a mean over seeds (Student's t); 0 of fewer than two seeds."""
    if len(values) < 2:
        return 0.0
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def difference(values: Sequence[float]) -> str:
    """A paired difference; one whose 95 % confidence interval (Student's t) holds zero is not called one."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:+.{4 if abs(mean) >= 0.00005 or not mean else 5}f}".replace("-", "−")
    deviation = statistics.stdev(values)
    digits = 4 if deviation >= 0.00005 else 5  # else a deviation of 0.0000 stands beside a tiny difference
    text = f"{mean:+.{digits}f} ± {deviation:.{digits}f}".replace("-", "−")
    return text if abs(mean) > margin(values) or not any(values) else f"{text}, no difference seen"
