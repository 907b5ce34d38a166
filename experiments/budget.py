"""Trains with nothing but a budget, and compares the result with what needs no training at all.

Usage::

    python experiments/budget.py --data GlaS --budget 10m --out RUN          # sets with a test set of their own
    python experiments/budget.py --data ISBI2012 --budget 10m --out RUN --folds 5 --fold 0

It runs ``d2ed2q train --data DATA --out RUN --budget BUDGET``, takes its time from start to end, scores the test images
(or the fold left out), and writes ``experiments/budget/NAME.json`` and the table in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data import Dataset, Sample, open_dataset
from d2ed2q.files import write_text
from d2ed2q.recipes.budget import budget_seconds
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.experiment_settings import ExperimentTableSettings
from d2ed2q.recipes.experiment_tables import write_tables

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "budget"
_BINS = 256


def constant_dice(counts: np.ndarray) -> float:
    """Dice of the best mask that is the same class everywhere; mean over the foreground classes, as models are scored.

    Args:
        counts: pixels of each class, the background first.
    """
    share = counts[1:] / counts.sum()
    return float((2 * share / (1 + share)).max() / len(share))


def histograms(samples: Sequence[Sample], classes: int) -> np.ndarray:
    """Pixels that count, by channel (and the mean of all), class and intensity: ``(C + 1)×classes×256``."""
    total: np.ndarray | None = None
    for sample in samples:
        assert sample.label is not None  # only labelled images are compared
        keep = np.ones(sample.label.shape, bool) if sample.roi is None else sample.roi.numpy()
        label = sample.label.numpy()[keep]
        image = sample.image.numpy()
        channels = [channel[keep] for channel in (*image, image.mean(0))]
        bins = [np.minimum((channel * _BINS).astype(np.int64), _BINS - 1) for channel in channels]
        counts = np.stack(
            [np.bincount(label * _BINS + b, minlength=classes * _BINS).reshape(classes, _BINS) for b in bins]
        )
        total = counts if total is None else total + counts
    assert total is not None
    return total


def threshold_dice(training: np.ndarray, scored: np.ndarray) -> float:
    """Dice of a threshold on intensity; of several classes the mean, each with the best threshold of its own.

    Channel, threshold and direction are chosen on the training images.

    Args:
        training: :func:`histograms` of the training images.
        scored: of the images that are scored.
    """
    dice = []
    for number in range(1, training.shape[1]):
        best = np.unravel_index(int(np.argmax(_dice(training, number))), (2, *training.shape[::2]))
        dice.append(float(_dice(scored, number)[best]))
    return float(np.mean(dice))


def _dice(counts: np.ndarray, number: int) -> np.ndarray:
    """Dice of one class by direction (bright, dark), channel and threshold."""
    true = counts[:, number]
    every = counts.sum(1)
    results = []
    for direction in (slice(None, None, -1), slice(None)):
        hits = true[:, direction].cumsum(1)[:, direction]
        found = every[:, direction].cumsum(1)[:, direction]
        results.append(2 * hits / np.maximum(found + true.sum(1, keepdims=True), 1))
    return np.stack(results)


def compared(dataset: Dataset, splits: dict[str, list[str]], scored: Sequence[str]) -> dict[str, float]:
    """What needs no training, on the images that were scored."""
    cases = {case.id: case for case in dataset.cases}
    training = [dataset.read(cases[id]) for part in ("train", "validation") for id in splits[part]]
    counts = histograms([dataset.read(cases[id]) for id in scored], len(dataset.classes))
    return {
        "constant": constant_dice(counts[0].sum(1)),
        "threshold": threshold_dice(histograms(training, len(dataset.classes)), counts),
    }


def kept(run: Path, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of one run."""
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    card = json.loads((run / "model.json").read_text(encoding="utf-8"))
    scope = "fov" if "fov" in evaluation["scopes"] else "whole"
    figures = evaluation["scopes"][scope][evaluation["prediction"]]
    folds = f" --folds {options.folds} --fold {options.fold}" if options.folds else ""
    return {
        "command": f"d2ed2q train --data DATA --out RUN --budget {options.budget}{folds}",
        "dataset": data["dataset"],
        "scored": evaluation["dataset"]["split"],
        "images": len(evaluation["images"]),
        "scope": scope,
        "budget_seconds": budget_seconds(options.budget),
        "seconds": round(seconds, 1),
        "backbone": card["backbone"],
        "bits": card["bits"],
        "dice": figures["dice"],
        "auc": figures.get("auc"),
        **compared(open_dataset(Path(data["root"])), data["splits"], evaluation["images"]),
        "sha256": data["sha256"],
        "environment": {key: value for key, value in environment().items() if key != "command"},
    }


def main() -> int:
    """Trains, scores, compares and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--folds", type=int)
    parser.add_argument("--fold", type=int)
    options = parser.parse_args()
    folds = ["--folds", str(options.folds), "--fold", str(options.fold)] if options.folds else []
    program = [sys.executable, "-m", "d2ed2q"]
    begun = time.perf_counter()
    subprocess.run(
        [*program, "train", "--data", str(options.data), "--out", str(options.out), "--budget", options.budget, *folds],
        check=True,
    )
    seconds = time.perf_counter() - begun
    subprocess.run([*program, "evaluate", str(options.out)], check=True)
    result = kept(options.out, seconds, options)
    write_text(KEPT / f"{result['dataset']}.json", json.dumps(result, indent=1) + "\n")
    write_tables(ExperimentTableSettings(ROOT / "experiments"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
