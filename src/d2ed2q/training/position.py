"""Where a training stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Position"]


@dataclass
class Position:
    """All of a run that is not weights.

    Attributes:
        phase: index of the phase.
        epoch: done within the phase.
        batch: done within the epoch.
        step: optimizer steps since the run began.
        elapsed: seconds of training, all sessions together.
        sums: of the epoch's loss terms.
        best_score: of the phase's validations.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    elapsed: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    best_score: float = -math.inf
