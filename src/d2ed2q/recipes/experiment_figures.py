"""Results that were kept, and the figures in them: of one view, over seeds, and of two rows seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Seeds", "difference", "figures_of", "read_results", "scope_of", "spread"]

Seeds = Sequence[dict[str, Any]]
"""The results of one experiment, by seed."""


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All results below ``folder/results``: by name, for each seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((folder / "results").rglob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["name"], []).append(result)
    return {name: sorted(seeds, key=lambda result: result["seed"]) for name, seeds in sorted(found.items())}


def spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean and standard deviation over seeds; of one seed its value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def figures_of(result: dict[str, Any], weights: str, view: str) -> dict[str, Any]:
    """Figures of one view, of weights that were not quantized where there are no others."""
    scopes = result[weights] or result["few_bit"]
    figures: dict[str, Any] = scopes[scope_of(result)][result["prediction"] if view == "prediction" else view]
    return figures


def scope_of(result: dict[str, Any]) -> str:
    """Which pixels are scored: those inside the field of view, where there is one."""
    return "fov" if "fov" in result["few_bit"] else "whole"


def difference(values: Sequence[float]) -> str:
    """A paired difference; one that is smaller than twice its standard error is not called one."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    text = f"{mean:+.4f}".replace("-", "−")
    if len(values) == 1:
        return text
    deviation = statistics.stdev(values)
    seen = abs(mean) > 2 * deviation / len(values) ** 0.5
    return f"{text} ± {deviation:.4f}" + ("" if seen or not any(values) else ", no difference seen")
