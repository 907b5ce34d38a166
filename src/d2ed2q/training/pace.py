"""Keeping a run within its time: it gets fewer epochs when it falls behind and, where wanted, more when it is ahead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Pace"]

_RESERVE = 0.02  # of the limit: starting and ending a process, writing, and one closing that is slower than another
_JUDGED_AFTER = 0.05  # of the limit: the first steps of a process are slower than all others
_AIM = 0.97  # of the time that is left, so that noise does not shorten the run again and again
_EDGE = 0.1  # of the limit, at both ends, in which nothing is lengthened: a few epochs tell and change little
_AHEAD = 0.85  # of the time that is left is all that the epochs would take
_AIM_AHEAD = 0.93  # lower than the other, so that a longer run does not have to be shortened again


@dataclass
class Pace:
    """How fast a run is, and what it still can do in its time.

    Attributes:
        limit: seconds that the whole run may take, all sessions together.
        closing: what the end of a phase that ends with more than its last epoch takes, and the end of the run, in
            validations; only until one was timed.
        validate_every: epochs between validations.
        fill: whether a run that is well ahead of its time gets more epochs.
        clock: seconds since some moment.
        began: the clock's reading when this session began.
    """

    limit: float
    closing: float = 1.0
    validate_every: int = 1
    fill: bool = False
    clock: Callable[[], float] = time.monotonic
    began: float | None = None
    _before: float = field(default=0.0, init=False)  # seconds of earlier sessions
    _busy: float = field(default=0.0, init=False)  # seconds of the epochs that were counted, validations apart
    _epochs: int = field(default=0, init=False)
    _validation: float = field(default=0.0, init=False)
    _closing: float | None = field(default=None, init=False)  # seconds of the slowest one
    _epoch_before: float = field(default=0.0, init=False)  # seconds of the current epoch in earlier sessions
    _epoch_began: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.began is None:
            self.began = self.clock()

    @property
    def spent(self) -> float:
        """Seconds so far, all sessions together."""
        assert self.began is not None  # set when it was made
        return self._before + self.clock() - self.began

    @property
    def _of_epoch(self) -> float:
        return self._epoch_before + (0.0 if self._epoch_began is None else self.clock() - self._epoch_began)

    def begin_epoch(self) -> None:
        """Takes note that an epoch begins, or goes on in another session."""
        self._epoch_began = self.clock()

    def end_epoch(self) -> None:
        """Takes note that it is over; a validation after it counts apart."""
        self._busy += self._of_epoch
        self._epochs += 1
        self._epoch_before, self._epoch_began = 0.0, None

    def validation_took(self, seconds: float) -> None:
        """Takes note of a validation."""
        self._validation = seconds

    def closing_took(self, seconds: float) -> None:
        """Takes note of the end of a phase that ends with more than its last epoch."""
        self._closing = max(seconds, self._closing or 0.0)

    def fitting(self, left: Sequence[int], closings: int) -> list[int] | None:
        """The epochs that fit into the time that is left.

        Args:
            left: epochs left in the current phase (0 if it is over) and in each later one.
            closings: how many ends are still to come, see ``closing``.

        Returns:
            list: fewer or more epochs, at least one where there was one; None where the run is on pace, or cannot be
                changed.
        """
        if self._epochs == 0 or self._busy < _JUDGED_AFTER * self.limit or not any(left):
            return None
        expected = self._expected(left)
        closing = self.closing * self._validation if self._closing is None else self._closing
        available = (1 - _RESERVE) * self.limit - self.spent - closings * closing
        # Before the first validation nobody knows what one takes.
        edge = _EDGE * self.limit
        may_grow = self.fill and self.spent >= edge and available >= edge and self._validation > 0
        ahead = may_grow and expected < _AHEAD * available
        if expected <= available and not ahead:
            return None
        share = max((_AIM_AHEAD if ahead else _AIM) * available, 0.0) / expected
        fitting = [max(1, int(share * epochs)) if epochs else 0 for epochs in left]
        return fitting if fitting != list(left) else None

    def _expected(self, left: Sequence[int]) -> float:
        """Seconds of so many epochs; the last of each phase is validated in any case."""
        validations = sum(math.ceil(epochs / self.validate_every) for epochs in left)
        return sum(left) * self._busy / self._epochs + validations * self._validation

    def row(self, epochs: Sequence[int], left: Sequence[int]) -> dict[str, Any]:
        """What is logged: the epochs of all phases as they are now, and why those that were ``left`` did not stay."""
        over = f"{self.spent:.0f} of {self.limit:.0f} seconds are over"
        expected = f"{sum(left)} more epochs would take {self._expected(left):.0f}"
        return {"epochs": list(epochs), "reason": f"{over}; {expected}"}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "spent": self.spent,
            "busy": self._busy,
            "epochs": self._epochs,
            "validation": self._validation,
            "epoch": self._of_epoch,
            "closing": self._closing,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        self._before, self._busy = float(state["spent"]), float(state["busy"])
        self._epochs, self._validation = int(state["epochs"]), float(state["validation"])
        self._epoch_before, self._epoch_began = float(state["epoch"]), None
        self._closing = None if state["closing"] is None else float(state["closing"])
