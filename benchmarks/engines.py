"""How far the engines are from each other on real images, for every model of pictures in the package.

Usage::

    python benchmarks/engines.py --data DATA --out benchmarks/results/engines.json

Of each model a few images of its set are segmented in every engine that is installed: the Dice of all their pixels, and
how the probabilities differ from OpenVINO's. The sample in the file is compared with what the exporting machine gave.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data import Dataset, open_dataset, read_image
from d2ed2q.deploy import Predictor, available_engines, model_path
from d2ed2q.files import write_text
from d2ed2q.recipes.environment import environment

SETS = {"neuron-membranes": ("ISBI2012", 6), "polyps": ("Kvasir-SEG", 12), "retina-vessels": ("DRIVE", 4)}
REFERENCE = "openvino"


def measure(name: str, dataset: Dataset, count: int) -> dict[str, dict[str, float]]:
    """Of every engine the Dice, and the differences to the reference and of the sample."""
    cases = (list(dataset.test) or list(dataset.train))[:count]
    figures: dict[str, dict[str, float]] = {}
    reference: list[np.ndarray] = []
    for engine in sorted(available_engines(), key=lambda engine: engine != REFERENCE):
        predictor = Predictor(model_path(Path(name)), engine)
        found, both, probabilities = 0, 0, []
        for case in cases:
            prediction, label = predictor(read_image(case.image), tta="none"), dataset.read(case).label
            assert label is not None
            mask, truth = prediction.mask > 0, label.numpy() > 0
            found, both = found + int(mask.sum() + truth.sum()), both + int((mask & truth).sum())
            probabilities.append(prediction.probability)
        reference = reference or probabilities
        away = [np.abs(one - other) for one, other in zip(probabilities, reference, strict=True)]
        test = predictor.self_test()
        figures[engine] = {
            "dice": (dice := 2 * both / found),
            "dice_away": abs(dice - figures.get(REFERENCE, {"dice": dice})["dice"]),
            "largest": max(float(one.max()) for one in away),
            "largest_mean": max(float(one.mean()) for one in away),
            "sample_largest": test.largest,
            "sample_mean": test.mean,
            "sample_far": test.far,
        }
    return figures


def main() -> int:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of all data")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "models": {}}
    for name, (folder, count) in SETS.items():
        result["models"][name] = {"images": count, **measure(name, open_dataset(options.data / folder), count)}
        print(name, json.dumps(result["models"][name], indent=1))
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
