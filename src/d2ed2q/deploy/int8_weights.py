"""Trained few-bit weights as int8 × one scale per output channel, without a second rounding where that is possible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Int8Weight", "int8_weight"]

_LARGEST = 127  # symmetric: −128 is never used, so that a sign can always be turned


@dataclass(frozen=True)
class Int8Weight:
    """A weight tensor as an int8 engine multiplies with it.

    Attributes:
        codes: int8, the weight's shape, −127…127.
        scale: float32, ``C``, positive: one for each output channel.
        axis: the output-channel dimension.
        error: ``‖codes·scale − w‖₂ / ‖w‖₂``; float32 rounding is not counted.
    """

    codes: Tensor
    scale: Tensor
    axis: int
    error: float

    @property
    def weight(self) -> Tensor:
        """The weight that is multiplied with: float32."""
        return self.codes.float() * self._across(self.scale)

    def folded(self, gain: Tensor) -> Int8Weight:
        """With each output channel multiplied by a number of any sign: the codes keep their magnitudes.

        Args:
            gain: float32, ``C``.
        """
        sign = torch.where(gain < 0, -1, 1).to(torch.int8)
        magnitude = gain.abs()
        live = (magnitude > 0) & (self.scale * magnitude > 0)
        codes = torch.where(self._across(live), self.codes * self._across(sign), torch.zeros_like(self.codes))
        scale = torch.where(live, self.scale * magnitude, torch.ones_like(magnitude))
        return Int8Weight(codes, scale, self.axis, self.error)

    def _across(self, values: Tensor) -> Tensor:
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return values.reshape(shape)


def int8_weight(weight: Tensor, axis: int, step: Tensor | None = None) -> Int8Weight:
    """Finds int8 codes and scales for a weight tensor.

    Of each output channel the scale that loses least is taken, among: the codebook's step (the scales of ``geometric``;
    every level of ``pow2`` and ``linear`` is a multiple of the smallest), the channel's smallest magnitude, and the
    largest magnitude over 127, which serves any weights.

    Args:
        weight: the trained weight, float32.
        axis: its output-channel dimension.
        step: one for all or one for each channel, of which every weight is a multiple if its codebook is one of those.
    """
    weight = weight.detach().float().cpu()
    rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    largest = rows.abs().amax(1)
    smallest = torch.where(rows == 0, torch.inf, rows.abs()).amin(1)
    candidates = [largest / _LARGEST, smallest]
    if step is not None:
        candidates.insert(0, step.detach().float().cpu().expand(len(rows)))
    best_codes = torch.zeros_like(rows)
    best_scale = torch.ones(len(rows))
    best_error = torch.where(largest > 0, torch.inf, 0.0).double()
    for scale in candidates:
        usable = (scale > 0) & torch.isfinite(scale)
        safe = torch.where(usable, scale, torch.ones_like(scale))[:, None]
        codes = torch.round(rows / safe).clamp(-_LARGEST, _LARGEST)
        error = (codes * safe - rows).double().square().sum(1)
        # Division and multiplication of float32 stray by their last bits; those are no second rounding.
        close = (codes * safe - rows).abs() <= 4e-7 * rows.abs()
        error = torch.where(close.all(1), 0.0, error)
        better = usable & (error < best_error)
        best_codes = torch.where(better[:, None], codes, best_codes)
        best_scale = torch.where(better, safe[:, 0], best_scale)
        best_error = torch.where(better, error, best_error)
    norm = rows.double().square().sum()
    relative = float((best_error.sum() / norm).sqrt()) if norm > 0 else 0.0
    codes = best_codes.to(torch.int8).reshape(weight.movedim(axis, 0).shape).movedim(0, axis).contiguous()
    return Int8Weight(codes, best_scale, axis, relative)
