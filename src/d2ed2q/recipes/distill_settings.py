"""The settings of ``d2ed2q distill``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

__all__ = ["DistillSettings"]


@dataclass(frozen=True)
class DistillSettings:
    """Train one few-bit network on an ensemble's mean, for the smallest boxes: about a quarter of the arithmetic."""

    run: Positional[Path]
    """Run folder of the finished ensemble, the teacher."""
    out: Path
    """Run folder of the student to write; must not exist unless --resume."""
    data: Path | None = None
    """Folder of the dataset; by default the one the teacher was trained on."""
    share: float = 0.5
    """Share of the teacher in what is learned; the rest is the label."""
    backbone: str | None = None
    """Architecture of the student; by default the teacher's, and so is all below but the rates of another one."""
    taps: tuple[str, ...] | None = None
    """Of a network of your own as the student, the submodules that count as its taps."""
    epochs: int | None = None
    """Epochs in full precision."""
    epochs_q: int | None = None
    """Epochs of retraining after each quantization step."""
    quantize: bool | None = None
    """Whether to quantize at all (--quantize), or not (--no-quantize)."""
    bits: tuple[int, ...] | None = None
    """Bits of the weights, one number; by default those of the teacher's meta learner."""
    codebook: str | None = None
    """The values weights may take: geometric (exact in int8 engines), log, pow2, linear, minmax or tanh."""
    lr: float | None = None
    """Peak learning rate in full precision."""
    lr_q: float | None = None
    """Peak learning rate of each retraining."""
    seed: int | None = None
    """Seed of everything random."""
    device: str | None = None
    """cpu, cuda or auto."""
    resume: bool = False
    """Go on with the student in --out."""
