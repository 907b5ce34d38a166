"""What several processes that share every batch have to agree on; with one process, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from d2ed2q.errors import D2ED2QError, first_line

__all__ = ["on_any", "on_first", "share_buffers"]

Found = TypeVar("Found")


def on_first(fabric: Fabric, find: Callable[[], Found]) -> Found:
    """What the first process finds, in all of them; what goes wrong there goes wrong in all of them.

    Raises:
        D2ED2QError: as ``find`` does; in the others whatever else went wrong, too.
    """
    if fabric.world_size == 1:
        return find()
    found: Found | None = None
    error: Exception | None = None
    if fabric.is_global_zero:
        try:
            found = find()
        except Exception as raised:
            error = raised
    told = error if error is None or isinstance(error, D2ED2QError) else D2ED2QError(first_line(error))
    found, told = fabric.broadcast((found, told))
    if error is not None:
        raise error
    if told is not None:
        raise told
    return found  # type: ignore[return-value]  # what the first has found


def on_any(fabric: Fabric, flag: bool) -> bool:
    """Whether a flag is set in any process."""
    if fabric.world_size == 1:
        return flag
    set_in: Any = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(set_in > 0)


@torch.no_grad()
def share_buffers(fabric: Fabric, module: nn.Module) -> None:
    """Gives every process the first one's buffers: each has had batch statistics of its own."""
    if fabric.world_size == 1:
        return
    for buffer in module.buffers():
        torch.distributed.broadcast(buffer, 0)
