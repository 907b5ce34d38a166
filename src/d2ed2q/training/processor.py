"""What a process sets once, before it trains."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

__all__ = ["keep_freed_memory", "prepare_processor"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt(3)
_NEVER = 2**31 - 1


def prepare_processor() -> None:
    """Makes steps on this process's processor fast; called before anything is computed.

    Denormal numbers are flushed to zero: they cost a factor of two and more, and worker threads inherit the mode when
    they start. Memory that is freed is kept, see :func:`keep_freed_memory`.
    """
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed for what is asked for next; whether it does.

    By default large tensors are given back to the system, which gives out every page of the next step's anew: zeroed,
    and with a fault each, which virtual machines pay twice. What a process holds is what it needed at most. Only glibc
    can be told; whoever has set its variables (``MALLOC_…``, ``GLIBC_TUNABLES``) is not overruled.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_MAX, 0))
