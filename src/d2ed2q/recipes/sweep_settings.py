"""The settings of ``d2ed2q sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from d2ed2q.errors import ConfigError

__all__ = ["SweepSettings"]


@dataclass(frozen=True)
class SweepSettings:
    """Search for good training settings; several processes and machines may work on one search at the same time."""

    space: Positional[Path]
    """TOML file: the settings to search in, and what they may be."""
    data: Path
    """Folder of the dataset."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """Folder of the search, shared by all workers; called again, the same command goes on."""
    train: Path | None = None
    """TOML file of the settings that all trials share; by default those of d2ed2q train."""
    trials: int = 30
    """Trials of the whole search, of all workers together."""
    metric: Literal["dice", "auc"] = "dice"
    """What is to be high on the validation images, in the last phase of a training; auc in binary tasks only."""
    prune: bool = True
    """Give up trials that are below the median of the others at the same validation."""
    seed: int = 0
    """Seed of the search; trainings have their own among the shared settings."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials must be at least 1, got {self.trials}")
