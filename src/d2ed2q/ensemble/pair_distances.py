"""Squared distances and inner products of tensors, all pairs in one pass over memory forward and one backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["inner_products", "squared_distances"]

# Elements, of all tensors together, that are worked on at a time: in float32 they fit into a core's own cache.
_BLOCK = 1 << 18


def squared_distances(tensors: Sequence[Tensor]) -> Tensor:
    """Squared Euclidean distances of all pairs i < j, sample by sample, summed in float32.

    Written as differences and norms, each pair is several passes over features that no cache holds, and as many
    backward. Here every tensor is read once, block by block.

    Args:
        tensors: K ≥ 2 tensors of equal shape ``B×…``; fastest where all have the same layout in memory.

    Returns:
        Tensor: ``B×K(K−1)/2``, float32, pairs in the order of :func:`itertools.combinations`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the passes itself
        return torch.stack(
            [(one.float() - other.float()).square().flatten(1).sum(1) for one, other in combinations(tensors, 2)], 1
        )
    distances: Tensor = _SquaredDistances.apply(*tensors)  # type: ignore[no-untyped-call]  # as PyTorch has it
    return distances


def inner_products(tensors: Sequence[Tensor]) -> Tensor:
    """Inner products of all tensors with each other, sample by sample, summed in float32, in one pass as well.

    Args:
        tensors: K tensors of equal shape ``B×…``; fastest where all have the same layout in memory.

    Returns:
        Tensor: ``B×K×K``, float32, symmetric; squared lengths on the diagonal.
    """
    if torch.compiler.is_compiling():
        with torch.autocast(tensors[0].device.type, enabled=False):  # which would multiply in 16 bits
            rows = torch.stack([one.float().flatten(1) for one in tensors], 1)
            return rows @ rows.mT
    products: Tensor = _InnerProducts.apply(*tensors)  # type: ignore[no-untyped-call]  # as PyTorch has it
    return products


class _InnerProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        found = tensors[0].new_zeros((len(tensors[0]), len(tensors), len(tensors)), dtype=torch.float32)
        with torch.autocast(found.device.type, enabled=False):
            for _, block in _blocks(tensors):
                found += torch.bmm(block, block.mT)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return _weighted_sums(gradient + gradient.mT, ctx.saved_tensors)


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        pairs = list(combinations(range(len(tensors)), 2))
        found = tensors[0].new_zeros((len(tensors[0]), len(pairs)), dtype=torch.float32)
        for _, block in _blocks(tensors):
            for index, (one, other) in enumerate(pairs):
                found[:, index] += torch.linalg.vector_norm(block[:, one] - block[:, other], dim=1).square_()
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        tensors = ctx.saved_tensors
        # d/dxⁱ Σ wᵢⱼ ‖xⁱ − xʲ‖² = Σⱼ 2 wᵢⱼ (xⁱ − xʲ): a small matrix times the tensors.
        weights = gradient.new_zeros((len(gradient), len(tensors), len(tensors)))
        for index, (one, other) in enumerate(combinations(range(len(tensors)), 2)):
            weights[:, one, other] = weights[:, other, one] = -2 * gradient[:, index]
        weights.diagonal(dim1=1, dim2=2).copy_(-weights.sum(2))
        return _weighted_sums(weights, tensors)


def _weighted_sums(weights: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``Σⱼ wᵢⱼ xʲ`` of each sample, of the tensors' types and layout; ``weights`` is ``B×K×K`` float32."""
    last = _channels_last(tensors[0])
    shape = _ordered(tensors[0], last).shape
    sums = [torch.empty(shape, dtype=one.dtype, device=one.device) for one in tensors]
    rows = [one.view(len(one), -1) for one in sums]
    with torch.autocast(weights.device.type, enabled=False):
        for part, block in _blocks(tensors):
            for row, values in zip(rows, torch.bmm(weights, block).unbind(1), strict=True):
                row[:, part] = values
    return tuple(one.movedim(-1, 1) if last else one for one in sums)


def _blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the rows, in the order of the first tensor's memory: where, and all values there, ``B×K×n`` float32."""
    last = _channels_last(tensors[0])
    rows = [_ordered(one, last).flatten(1) for one in tensors]
    batch, elements = rows[0].shape
    # An accelerator has no use for small parts.
    step = elements if rows[0].is_cuda else max(_BLOCK // (batch * len(rows)), 1)
    for begin in range(0, elements, step):
        part = slice(begin, begin + step)
        yield part, torch.stack([row[:, part] for row in rows], 1).float()


def _channels_last(tensor: Tensor) -> bool:
    return tensor.ndim > 2 and not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()


def _ordered(tensor: Tensor, last: bool) -> Tensor:
    return tensor.movedim(1, -1) if last else tensor
