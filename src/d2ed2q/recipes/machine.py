"""What there is to compute with: cores, memory and accelerator, as far as this process may use them."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from d2ed2q.recipes.environment import processor

__all__ = ["Machine", "peak_memory", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """What a training may use.

    Attributes:
        processor: its name.
        cores: that this process may run on.
        memory: bytes that are free now; None where the system does not tell.
        gpu: name of the accelerator; None without one.
        gpu_memory: its free bytes, 0 without one.
    """

    processor: str
    cores: int
    memory: int | None
    gpu: str | None = None
    gpu_memory: int = 0

    @property
    def training_memory(self) -> int | None:
        """Free bytes where the networks are trained."""
        return self.gpu_memory if self.gpu is not None else self.memory


def this_machine(device: str = "auto") -> Machine:
    """Looks at the machine.

    Args:
        device: as in the settings of a training; with ``cpu`` an accelerator is not looked for.
    """
    import torch

    gpu, gpu_memory = None, 0
    if device != "cpu" and torch.cuda.is_available():
        gpu, gpu_memory = torch.cuda.get_device_name(0), torch.cuda.mem_get_info()[0]
    return Machine(processor(), _cores(), _memory(), gpu, gpu_memory)


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        words = _read(group / "cpu.max").split() or [
            _read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return max(allowed, 1)


def _memory() -> int | None:
    """Free memory of the machine, or what is left below the lowest limit of this process's control groups."""
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


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource  # not there on Windows, where only this function needs it

    try:
        # Linux counts the largest memory of a process anew after exec only here: rusage carries the parent's over.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
