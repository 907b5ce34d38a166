"""How many epochs a run really had: a time limit shortens or lengthens what was planned."""

from __future__ import annotations

from collections import Counter

from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import read_log

__all__ = ["FIRST", "epochs_run"]

FIRST = "full_precision"
"""Name of the first phase, in the log."""


def epochs_run(run: RunFolder) -> tuple[int, int]:
    """Epochs in full precision and in a phase of quantization, on average, as logged; as planned, where nothing was."""
    planned: TrainSettings = settings_from(run.config, TrainSettings)
    logged = Counter(row["phase"] for row in read_log(run.metrics) if row["kind"] == "train")
    first = logged.pop(FIRST, planned.epochs)
    return first, max(1, round(sum(logged.values()) / len(logged))) if logged else planned.epochs_q
