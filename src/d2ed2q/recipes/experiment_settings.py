"""The settings of ``d2ed2q experiment``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

__all__ = ["ExperimentRunSettings", "ExperimentTableSettings"]


@dataclass(frozen=True)
class ExperimentRunSettings:
    """Run experiments: train, evaluate, and keep the result of every seed that is not there yet; can be resumed."""

    names: Positional[tuple[str, ...]]
    """Experiments, or folders of them, below --folder; without any, all."""
    data: Path
    """Folder that holds the datasets, each under the name that the experiments have for it."""
    folder: Path = Path("experiments")
    """Folder of the experiments; results go into results/ in it."""
    runs: Path = Path("runs/experiments")
    """Where the run folders are written; an experiment that was begun there goes on."""
    seeds: tuple[int, ...] = ()
    """Only these of the experiments' seeds; by default all."""
    device: str | None = None
    """cpu, cuda or auto, if it is not to be what the experiments say."""
    again: bool = False
    """Evaluate and keep anew what has a result, where its run folder is still there."""


@dataclass(frozen=True)
class ExperimentTableSettings:
    """Write the tables of README.md and docs/results.md from the results that are kept."""

    folder: Path = Path("experiments")
    """Folder of the experiments."""
    check: bool = False
    """Write nothing; fail if a table is not what the results give."""
