"""Channels last in memory: the layout that convolutions are faster with, and where it must not be."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from d2ed2q.ensemble import DeepEnsemble

__all__ = ["channels_last", "in_channels_last"]

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_BLOCK = 16  # channels that oneDNN takes at a time


def channels_last(batch: Tensor) -> Tensor:
    """The same batch, ``B×C×*spatial``, channels last in memory."""
    return batch.contiguous(memory_format=_FORMATS[batch.ndim])


def in_channels_last(ensemble: DeepEnsemble, dims: int) -> DeepEnsemble:
    """The same ensemble, its weights channels last in memory.

    Apart from strided 1×1 convolutions of few channels: of those, oneDNN's gradient writes past its workspace on CPUs
    if they are channels last (`oneDNN issue 6035 <https://github.com/uxlfoundation/oneDNN/issues/6035>`_), which ends
    the process or, worse, changes other numbers. They get their input channels first while gradients are recorded.
    """
    ensemble.to(memory_format=_FORMATS[dims + 2])  # type: ignore[call-overload]
    for module in _narrow_shortcuts(ensemble):
        # Of a 1×1 kernel .contiguous() sees no difference between the layouts, but PyTorch goes by the strides.
        module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
        module.register_forward_pre_hook(_channels_first)
    return ensemble


def _narrow_shortcuts(network: nn.Module) -> Iterator[nn.Conv2d]:
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels >= _BLOCK:
            continue
        if module.kernel_size == (1, 1) and module.stride != (1, 1):
            yield module


def _channels_first(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    return (inputs[0].contiguous(), *inputs[1:]) if torch.is_grad_enabled() else None
