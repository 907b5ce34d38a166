"""Several ways of doing one thing, timed in turns, so that a slow minute of the machine falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

__all__ = ["in_turns"]


def in_turns(
    ways: Mapping[str, Callable[[], object]], turns: int, runs: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every timed run, by way.

    Args:
        ways: what is run, by name.
        turns: how often each way has its turn; every second time they come in the reverse order.
        runs: of a way in its turn.
        warm_up: turns before these that are not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_up + turns):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            for _ in range(runs):
                start = time.perf_counter()
                ways[name]()
                if turn >= warm_up:
                    seconds[name].append(time.perf_counter() - start)
    return seconds
