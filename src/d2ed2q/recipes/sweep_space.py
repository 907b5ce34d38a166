"""What a search may choose from: settings of a training by name, each with choices or a range."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import convert, load_toml
from d2ed2q.recipes.train_settings import TrainSettings

if TYPE_CHECKING:
    import optuna

__all__ = ["Dimension", "read_space"]

_NOT_SEARCHED = (
    "data",
    "out",
    "resume",
    "budget",
    "time_limit",
    "fill_time",
    "devices",
    "nodes",
    "device",
    "folds",
    "fold",
    "dataset",
    # Trials are compared on the same images, after the same epochs of the same phases.
    "seed",
    "validation_fraction",
    "validation_images",
    "validate_every",
    "epochs",
    "epochs_q",
    "quantize",
    "fractions",
    "keep",
)


@dataclass(frozen=True)
class Dimension:
    """One setting of the search.

    Attributes:
        name: of the setting.
        choices: values, as TOML has them; empty for a range.
        low: smallest value of a range.
        high: largest value of a range.
        log: whether a range is searched evenly in the logarithm.
        whole: whether its values are whole numbers.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value of one trial, as TOML has it."""
        if self.choices:  # as text: what is chosen may be a list
            return json.loads(trial.suggest_categorical(self.name, [json.dumps(choice) for choice in self.choices]))
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def read_space(path: Path) -> tuple[Dimension, ...]:
    """Reads the file of a search.

    A setting is given a list of choices, ``loss = ["bce", "bce_dice"]``, or a range, ``lr = {low = 1e-4, high = 1e-2,
    log = true}``.

    Raises:
        ConfigError: an unknown setting, a choice of the wrong type, or a range that is none.
    """
    table = load_toml(path)
    if not table:
        raise ConfigError(f"{path} names no setting to search in")
    hints = typing.get_type_hints(TrainSettings)
    found = []
    for name, values in table.items():
        if name in _NOT_SEARCHED:
            raise ConfigError(f"{path}: {name} is the same for all trials")
        if isinstance(values, list):
            if len(values) < 2:
                raise ConfigError(f"{path}: {name} needs two choices or more")
            for choice in values:
                convert({name: choice}, TrainSettings, str(path))
            found.append(Dimension(name, tuple(values)))
            continue
        if not isinstance(values, dict) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
            raise ConfigError(f"{path}: {name} is a list of choices, or a range {{low = 1, high = 2, log = true}}")
        whole = hints.get(name) in (int, int | None)
        for end in ("low", "high"):
            convert({name: values[end]}, TrainSettings, str(path))
        low, high, log = float(values["low"]), float(values["high"]), values.get("log", False)
        if not isinstance(log, bool):
            raise ConfigError(f"{path}: log of {name} must be true or false, got {log!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise ConfigError(f"{path}: {name} cannot go from {values['low']} to {values['high']}")
        found.append(Dimension(name, (), low, high, log, whole))
    return tuple(found)
