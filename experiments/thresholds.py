"""Which images a threshold is best chosen on: a few validation images, or all that are labelled?

Usage::

    d2ed2q experiment run recipe --data DATA --runs RUNS
    python experiments/thresholds.py drive RUNS/recipe/*
    d2ed2q experiment run rates --data DATA --runs RUNS
    python experiments/thresholds.py glas RUNS/rates/glas-*

Of each run, which must have left a fold out, the threshold of its prediction is chosen on its validation images, and
on its training and validation images together; both are then used on the fold. It is written to
``experiments/thresholds/NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data import Case
from d2ed2q.files import write_text
from d2ed2q.metrics import Ranking
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.run_data import recorded_data
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.validation import pooled_dice, pooled_predictions

KEPT = Path(__file__).resolve().parent / "thresholds"


def measure(run: RunFolder) -> dict[str, Any]:
    """Dice of the fold at three thresholds: of the validation images, of all that are labelled, and the fold's best."""
    card, ensemble = run.read_card(), run.load()
    dataset, splits = recorded_data(run)
    folded = set(run.read_json(run.data)["splits"].get("fold", ()))
    if not folded:
        raise SystemExit(f"{run.path} was trained without folds; no image is left to try thresholds on")
    fold = [case for case in dataset.cases if case.id in folded]

    def pooled(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
        by_view, truth = pooled_predictions(
            lambda sample: predict_sample(ensemble, card, sample, card.tta), map(dataset.read, cases), [card.prediction]
        )
        return by_view[card.prediction][0], truth

    few, seen, left_out = map(pooled, (splits["validation"], splits["train"], fold))
    every = [np.concatenate(parts) for parts in zip(few, seen, strict=True)]
    thresholds = {
        name: Ranking(*pixels).best_dice_threshold()[0]
        for name, pixels in (("validation", few), ("all", every), ("best", left_out))
    }
    return {
        "run": run.path.name,
        "images": {"validation": len(splits["validation"]), "all": len(splits["train"]) + len(splits["validation"])},
        "thresholds": thresholds,
        "dice": {name: pooled_dice(left_out[0][None], left_out[1], value) for name, value in thresholds.items()},
    }


def main() -> int:
    """Measures and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file that is kept")
    parser.add_argument("runs", type=lambda name: RunFolder(Path(name)), nargs="+")
    options, rows = parser.parse_args(), []
    for run in options.runs:
        rows.append(measure(run))
        print(rows[-1]["run"], {name: round(value, 4) for name, value in rows[-1]["dice"].items()}, flush=True)
    result = {
        "command": f"python experiments/thresholds.py {options.name} RUNS",
        "rows": rows,
        "environment": {key: value for key, value in environment().items() if key != "command"},
    }
    write_text(KEPT / f"{options.name}.json", json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
