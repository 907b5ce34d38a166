"""What there is to compute with: cores, memory and accelerator, as far as this process may use them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from d2ed2q.limits import free_memory, usable_cores
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
    return Machine(processor(), usable_cores(), free_memory(), gpu, gpu_memory)


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
