"""Times as a user writes them: 90s, 10m, 1h, 1h30m."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from d2ed2q.errors import ConfigError

__all__ = ["NO_BUDGET", "budget_seconds", "check_time", "duration"]

NO_BUDGET: Mapping[str, Any] = {"budget": None, "time_limit": None, "fill_time": False}
"""Settings of a training that is made of another one, whose budget was for the whole of itself."""

_BUDGET = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)


def budget_seconds(text: str) -> int:
    """Seconds of a time such as ``90s``, ``10m``, ``1h`` or ``1h30m``.

    Raises:
        ConfigError: it is written in another way, or is nothing.
    """
    match = _BUDGET.fullmatch(text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ConfigError(f"a budget is a time such as 90s, 10m, 1h or 1h30m, got {text!r}")
    return total


def check_time(budget: str | None, limit: float | None) -> None:
    """Checks a budget and a time limit, and that they agree where there are both.

    Raises:
        ConfigError: one is out of range, or they differ: the limit is of a plan for another budget.
    """
    seconds = None if budget is None else budget_seconds(budget)
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise ConfigError(f"time_limit must be a positive number of seconds, got {limit}")
    if seconds is not None and limit is not None and seconds != limit:
        raise ConfigError(
            f"the budget is {budget}, but time_limit is {limit:g} seconds, as of a plan for another budget; give one "
            f"of them, or plan again"
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``9 min 30 s``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
