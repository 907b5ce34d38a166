"""The settings of ``d2ed2q quantize``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from d2ed2q.errors import ConfigError

__all__ = ["QuantizeSettings"]


@dataclass(frozen=True)
class QuantizeSettings:
    """Quantize a finished run anew, from its full-precision weights; or search for the fewest bits that it takes."""

    run: Positional[Path]
    """Run folder of a finished training."""
    out: Path | None = None
    """Run folder to write; must not exist unless --resume; only with --search it may be left out."""
    data: Path | None = None
    """Folder of the dataset; by default the one the run was trained on."""
    bits: tuple[int, ...] | None = None
    """Bits of the weights, as in training; by default the run's own, and so are the next six."""
    codebook: str | None = None
    """The values weights may take: geometric (exact in int8 engines), log, pow2, linear, minmax or tanh."""
    fractions: tuple[float, ...] | None = None
    """Share of the weights that each quantization step takes; they add up to 1."""
    random: bool | None = None
    """Draw at random among the largest weights (--random), or plain incremental quantization (--no-random)."""
    epochs_q: int | None = None
    """Epochs of retraining after each quantization step."""
    lr_q: float | None = None
    """Peak learning rate of each retraining."""
    device: str | None = None
    """cpu, cuda or auto."""
    search: bool = False
    """Find the fewest bits of each learner within --tolerance, without retraining; with --out, then train them."""
    tolerance: float = 0.5
    """Points (hundredths) of --metric that the bits found may cost on the validation images, before any retraining."""
    metric: Literal["dice", "auc"] = "dice"
    """What the tolerance is of; auc in binary tasks only."""
    codebooks: tuple[str, ...] = ()
    """Codebooks to search in; by default that of --codebook."""
    images: int = 8
    """Validation images that every combination is measured on; the one chosen is checked on all of them."""
    batches: int = 8
    """Training batches that BatchNorm's statistics are found anew on after rounding."""
    resume: bool = False
    """Go on with the run in --out."""

    def __post_init__(self) -> None:
        if self.out is None and not self.search:
            raise ConfigError("quantize needs a folder for the new run (--out NEW), or --search to look for bits first")
        if self.out is None and self.resume:
            raise ConfigError("there is nothing to resume without --out")
        if self.search and self.bits is not None:
            raise ConfigError("--search finds the bits; leave out --bits, or --search")
        if self.codebooks and (self.codebook is not None or not self.search):
            raise ConfigError("--codebooks are searched; without --search, or for a single one, pass --codebook")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"tolerance must be 0 or more points, got {self.tolerance}")
        for name in ("images", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
