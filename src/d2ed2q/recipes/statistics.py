"""BatchNorm's running statistics, found anew for weights that have changed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["estimate_statistics", "named_norms", "norms_of"]


def named_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """All BatchNorm layers that keep running statistics, by name."""
    for name, one in module.named_modules():
        if isinstance(one, _BatchNorm) and one.running_mean is not None:
            yield name, one


def norms_of(module: nn.Module) -> list[_BatchNorm]:
    """The same without their names."""
    return [norm for _, norm in named_norms(module)]


@torch.no_grad()
def estimate_statistics(norms: Sequence[_BatchNorm], run: Callable[[Tensor], object], images: Iterable[Tensor]) -> None:
    """Makes running means and variances the plain average over some batches.

    Rounding moves the means and variances of what BatchNorm sees. In training they follow by a tenth a step, so that
    after ten steps a third of them is still of the weights before.

    Args:
        norms: the layers, in evaluation mode, as they are afterwards; nothing else is to change while batches are run.
        run: what the images go through.
        images: of training batches, each ``B×C×*spatial``.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's name for a plain average over all batches
        norm.train()
    for image in images:
        run(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
