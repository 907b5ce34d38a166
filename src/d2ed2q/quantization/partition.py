"""The two-stage partition: among the largest free weights, a random draw is quantized next."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from d2ed2q.errors import ConfigError

__all__ = ["RELEASED_FRACTIONS", "check_fractions", "cumulative_count", "two_stage_partition"]

RELEASED_FRACTIONS = (0.3, 0.3, 0.2, 0.2)


def _exact(fractions: Sequence[float]) -> list[Fraction]:
    # 0.3 as written, not as the nearest binary number: ten weights at 30 % are three.
    return [Fraction(str(fraction)) for fraction in fractions]


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Returns the step fractions if each is positive and they add up to exactly 1.

    Raises:
        ConfigError: otherwise.
    """
    if not fractions or any(not 0 < fraction <= 1 for fraction in fractions) or sum(_exact(fractions)) != 1:
        raise ConfigError(f"quantization fractions must be positive and add up to 1, got {tuple(fractions)}")
    return tuple(fractions)


def cumulative_count(n: int, fractions: Sequence[float], step: int) -> int:
    """How many of n weights are quantized once step ``step`` (from 0) is done: (q₀ + … + q_step) · n, halves up."""
    return int((sum(_exact(fractions[: step + 1]), Fraction(0)) * n + Fraction(1, 2)) // 1)


def two_stage_partition(
    weight: Tensor, frozen: Tensor, count: int, generator: torch.Generator, random: bool = True
) -> Tensor:
    """Chooses which free weights are quantized next.

    Stage one takes, among the free weights, the ``2 · count`` largest in magnitude (all, where fewer are left). Stage
    two draws exactly ``count`` of these at random. With ``random=False`` stage two is left out and the ``count``
    largest are taken, which is plain INQ (Zhou et al., 2017).

    Args:
        weight: any shape.
        frozen: bool, same shape; True where a weight is quantized already.
        count: how many to choose, at most the number of free weights.
        generator: source of the draw, on the CPU.
        random: whether stage two draws at random.

    Returns:
        Tensor: bool, same shape, on the weight's device, with exactly ``count`` True values, none of them frozen.
    """
    free = ~frozen.cpu()
    magnitude = weight.detach().cpu()[free].abs()
    if count == len(magnitude):
        return free.to(weight.device)
    candidates = _largest_first(magnitude)[: 2 * count if random else count]
    if random:
        candidates = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    drawn = torch.zeros(len(magnitude), dtype=torch.bool)
    drawn[candidates] = True
    return torch.zeros(weight.shape, dtype=torch.bool).masked_scatter_(free, drawn).to(weight.device)


def _largest_first(magnitude: Tensor) -> Tensor:
    """Indices that sort magnitudes in descending order, the earlier first among equal ones, on every machine.

    The bits of floats that are not negative are in the order of their values, and whole numbers are sorted by radix:
    nine times as fast as a stable sort of two million floats.
    """
    bits = magnitude.float().contiguous().view(torch.int32)
    return torch.sort(-bits, stable=True).indices
