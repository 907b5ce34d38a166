"""Codebooks: the few values that the weights of one tensor may take.

A codebook is made once from a tensor's full-precision weights and never changes afterwards, so that a tensor quantized
in several steps still ends with at most 2^b distinct values (per output channel for ``geometric``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d2ed2q.errors import ConfigError

__all__ = ["CODEBOOKS", "Codebook", "check_bits", "geometric_magnitudes", "make_codebook", "require_finite"]

MIN_BITS, MAX_BITS = 2, 8
_INT8_MAX = 127
_FITTED_BELOW = 4  # bits
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Codebook:
    """The values one weight tensor may take, and where rounding switches from one to the next.

    Attributes:
        levels: float32, ascending; ``n`` for the whole tensor, or ``C×n`` with one row per output channel.
        boundaries: float32, ``n−1`` or ``C×(n−1)``: a weight above boundary i rounds to level i + 1 or higher.
        channel_axis: the tensor's output-channel dimension where levels are per channel, else None.
        integers: int8, ``n``: the levels before scaling, where ``levels = scale · integers`` exactly; else None.
        scale: float32, ``C``: one scale per output channel where ``integers`` is given, else None.
    """

    levels: Tensor
    boundaries: Tensor
    channel_axis: int | None = None
    integers: Tensor | None = None
    scale: Tensor | None = None

    def codes(self, weight: Tensor) -> Tensor:
        """Index of every weight's level: int64, the weight's shape, values 0…n−1."""
        if self.channel_axis is None:
            return torch.bucketize(weight.detach().contiguous(), self.boundaries)
        rows = weight.detach().movedim(self.channel_axis, 0)
        codes = torch.searchsorted(self.boundaries, rows.reshape(len(rows), -1).contiguous())
        return codes.reshape(rows.shape).movedim(0, self.channel_axis)

    def decode(self, codes: Tensor) -> Tensor:
        """The weights that ``codes`` stand for: float32, same shape."""
        if self.channel_axis is None:
            return self.levels[codes]
        rows = codes.movedim(self.channel_axis, 0)
        weights = torch.gather(self.levels, 1, rows.reshape(len(rows), -1))
        return weights.reshape(rows.shape).movedim(0, self.channel_axis).contiguous()

    def to(self, device: torch.device) -> Codebook:
        """The same codebook on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return Codebook(**moved)

    def quantize(self, weight: Tensor) -> Tensor:
        """Rounds every weight to its nearest level (nearest in log-magnitude for ``log``)."""
        return self.decode(self.codes(weight)).to(weight.dtype)

    def quantize_where(self, chosen: Tensor, weight: Tensor, others: Tensor) -> Tensor:
        """``weight`` rounded to its nearest level where ``chosen``, a bool of its shape; ``others`` elsewhere."""
        if self.channel_axis is not None:  # where each weight's channel tells its levels, all are as quickly rounded
            return torch.where(chosen, self.quantize(weight), others)
        return others.masked_scatter(chosen, self.quantize(weight[chosen]))


def check_bits(bits: int) -> int:
    """Returns ``bits`` if it is an integer from 2 to 8.

    Raises:
        ConfigError: otherwise.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits must be a whole number from {MIN_BITS} to {MAX_BITS}, got {bits!r}")
    return bits


def geometric_magnitudes(bits: int) -> tuple[int, ...]:
    """The positive integers of the ``geometric`` codebook, ascending, the last one 127.

    ``2^(b−1) − 1`` integers, geometrically spaced over 1…127, duplicates dropped; below 4 bits the ratio is 2.

    Examples:
        >>> geometric_magnitudes(4)
        (1, 2, 5, 11, 25, 57, 127)
        >>> geometric_magnitudes(3)
        (32, 63, 127)
    """
    count = 2 ** (check_bits(bits) - 1) - 1
    ratio = 2.0 if bits < 4 else _INT8_MAX ** (1 / (count - 1))
    exact = (_INT8_MAX / ratio**power for power in range(count))
    # Halves go down: 127 / 2 is 63, so that twice a level never passes the next one.
    return tuple(sorted({max(1, -int(-(value - 0.5) // 1)) for value in exact}))


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[..., 1:] + levels[..., :-1]) / 2


def _symmetric(magnitudes: Tensor, zero: bool = True) -> Tensor:
    middle = magnitudes.new_zeros(1 if zero else 0)
    return torch.cat((-magnitudes.flip(0), middle, magnitudes))


def _geometric(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Integers × one scale per output channel; a symmetric int8 engine holds them exactly. 2^b − 1 values at most."""
    magnitudes = torch.tensor(geometric_magnitudes(bits), dtype=torch.int16, device=weight.device)
    integers = _symmetric(magnitudes).to(torch.int8)
    rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    scale = rows.abs().amax(1) / _INT8_MAX
    if bits < _FITTED_BELOW:
        scale = _fitted(rows, integers.float(), scale)
    levels = scale[:, None] * integers.float()
    return Codebook(levels, _midpoints(levels), axis, integers, scale)


def _fitted(rows: Tensor, integers: Tensor, largest: Tensor) -> Tensor:
    """For each row the scale of least squared error, a share of ``largest``; what is larger rounds to the last level.

    Three or seven levels that reach to the largest weight leave hardly any for the many small ones.
    """
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in torch.linspace(1, _LEAST_SHARE, 16).tolist():
        levels = share * largest[:, None] * integers
        error = (Codebook(levels, _midpoints(levels), channel_axis=0).quantize(rows) - rows).square().sum(1)
        best = torch.where(error < least, share * largest, best)
        least = torch.minimum(error, least)
    return best


def _pow2(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Powers of two and zero (Zhou et al., INQ, 2017): the largest is 2^floor(log2(4 max|w| / 3)), 2^(b−2) of them."""
    largest = torch.floor(torch.log2(4 * weight.abs().max() / 3))
    magnitudes = torch.exp2(largest - torch.arange(2 ** (bits - 2), device=weight.device)).flip(0)
    levels = _symmetric(magnitudes)
    return Codebook(levels, _midpoints(levels))


def _log(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Uniform in log-magnitude from the smallest to the largest non-zero weight, both signs, no zero; as released."""
    magnitude = weight.abs()
    nonzero = magnitude[magnitude > 0]
    smallest, largest = nonzero.min().log(), nonzero.max().log()
    steps = torch.linspace(0, 1, 2 ** (bits - 1), device=weight.device)
    logs = smallest + (largest - smallest) * steps
    levels = _symmetric(logs.exp(), zero=False)
    inner = _midpoints(logs).exp()
    return Codebook(levels, _symmetric(inner))


def _linear(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Uniform and symmetric with zero: 2^b − 1 multiples of max|w| / (2^(b−1) − 1)."""
    half = 2 ** (bits - 1) - 1
    levels = torch.arange(-half, half + 1, device=weight.device) * (weight.abs().max() / half)
    return Codebook(levels, _midpoints(levels))


def _minmax(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Uniform from the smallest to the largest weight: 2^b values."""
    steps = torch.linspace(0, 1, 2**bits, device=weight.device)
    levels = weight.min() + (weight.max() - weight.min()) * steps
    return Codebook(levels, _midpoints(levels))


def _tanh(weight: Tensor, bits: int, axis: int) -> Codebook:
    """Uniform in tanh(w), symmetric with zero: 2^b − 1 values; the largest magnitude is kept, nearly if above 7."""
    bound = torch.tanh(weight.abs().max().clamp_max(8.0))  # tanh(8) is the last that float32 tells from one
    half = 2 ** (bits - 1) - 1
    levels = torch.atanh(torch.arange(-half, half + 1, device=weight.device) / half * bound)
    return Codebook(levels, _midpoints(levels))


CODEBOOKS: dict[str, Callable[[Tensor, int, int], Codebook]] = {
    "geometric": _geometric,
    "linear": _linear,
    "log": _log,
    "minmax": _minmax,
    "pow2": _pow2,
    "tanh": _tanh,
}


def require_finite(weight: Tensor) -> None:
    """Checks that weights can be quantized.

    Raises:
        ConfigError: they are not finite.
    """
    if not torch.isfinite(weight).all():
        raise ConfigError("cannot quantize weights that are NaN or infinite: the training diverged; lower its rate")


def make_codebook(weight: Tensor, bits: int, name: str = "geometric", channel_axis: int = 0) -> Codebook:
    """Makes the codebook of one weight tensor.

    Args:
        weight: the full-precision weights, any shape of at least one dimension, finite.
        bits: 2…8; the codebook has at most 2^bits levels.
        name: one of ``geometric``, ``linear``, ``log``, ``minmax``, ``pow2``, ``tanh``.
        channel_axis: the output-channel dimension (``geometric`` has one scale for each).

    Raises:
        ConfigError: unknown name, bits out of range, or weights that are not finite.
    """
    if name not in CODEBOOKS:
        raise ConfigError(f"unknown codebook {name!r}: choose one of {', '.join(CODEBOOKS)}")
    check_bits(bits)
    weight = weight.detach().float()
    require_finite(weight)
    if name != "geometric" and not weight.any():
        levels = weight.new_zeros(1)
        return Codebook(levels, levels.new_zeros(0))
    return CODEBOOKS[name](weight, bits, channel_axis)
