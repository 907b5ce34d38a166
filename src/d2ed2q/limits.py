"""How much of the machine this process may use, inside a container too."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["cores_in_words", "free_memory", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may run on: those of its affinity, and no more than its control groups' share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        words = _read(group / "cpu.max").split() or [
            _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return max(allowed, 1)


def cores_in_words(cores: int) -> str:
    """``1 core``, ``2 cores``."""
    return f"{cores} {'core' if cores == 1 else 'cores'}"


def free_memory() -> int | None:
    """Free bytes of the machine, or what is left below the lowest limit of this process's control groups.

    None where the system does not tell.
    """
    free = [
        int(line.split()[1]) * 1024
        for line in _read(Path("/proc/meminfo")).splitlines()
        if line.startswith("MemAvailable:")
    ]
    for group in _groups("memory"):
        for limit, usage, cache in (
            ("memory.max", "memory.current", "inactive_file "),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        ):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                # Files that were read stay in memory until it is needed, and count as used.
                lines = [line for line in _read(group / "memory.stat").splitlines() if line.startswith(cache)]
                free.append(most - used + sum(int(line.split()[1]) for line in lines))
    return max(min(free), 0) if free else None


def _groups(controller: str, root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """This process's control group of one kind and all above it, of version 1 and 2."""
    found = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds or controller in kinds.split(","):
            top = root if not kinds else root / controller
            group = top / path.lstrip("/")
            # Inside a container the path is often the one outside of it: then only the top is there.
            found += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
