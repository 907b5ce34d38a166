"""What a run is made of: phases, each with its epochs and learning rate, and with what begins and ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Phase"]


def _begin() -> Mapping[str, float]:
    return {}


def _end() -> None:
    return None


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with its own optimizer and learning-rate schedule.

    Attributes:
        name: shown and logged.
        epochs: at least 1.
        rate: peak learning rate.
        begin: called before the phase's first step (not again when the phase is resumed); the figures it returns are
            logged with the phase.
        end: called when the phase's best weights are back in the module; may be called twice after a kill.
    """

    name: str
    epochs: int
    rate: float
    begin: Callable[[], Mapping[str, float]] = _begin
    end: Callable[[], None] = _end

    @property
    def decides(self) -> bool:
        """Whether it ends with more than its last epoch."""
        return self.end is not _end
