r"""Scores a bundle on test images beside the weights it was exported from, and keeps that with its measurements.

Usage::

    d2ed2q experiment run drive-unet-xs-4bit --data DATA --seeds 0
    d2ed2q export runs/experiments/drive-unet-xs-4bit-seed0 -o RUN.d2q
    d2ed2q bench RUN.d2q --out bench.json
    python experiments/deployment.py experiments/results/drive-unet-xs-4bit-seed0.json RUN.d2q --data DATA/DRIVE \
        --bench bench.json --out experiments/deployment/drive-unet-xs-4bit.json
    python experiments/deployment.py   # only the tables, from the results kept

What was never scored has no result: ``--configuration experiments/NAME.toml`` stands in its place.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data import open_dataset
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.deploy.cleaning import clean_mask
from d2ed2q.files import write_text
from d2ed2q.metrics import binary_figures
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.train_settings import TestTimeAugmentation

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "deployment"
START, END = "<!-- deployment -->", "<!-- /deployment -->"
FIGURES = ("dice", "auc", "average_precision", "sensitivity", "specificity", "ece", "brier", "nll")


def test_figures(scopes: dict[str, Any], tta: TestTimeAugmentation, bundle: Path, data: Path) -> dict[str, Any]:
    """Figures of the prediction on all test images, of the trained weights in PyTorch and of the bundle.

    Args:
        scopes: figures of the trained weights, by scope and view.
        tta: test-time augmentation that they are with.
        bundle: what was exported.
        data: the dataset.
    """
    dataset = open_dataset(data)
    cases = [case for case in dataset.test if case.labelled]
    predictor = Predictor(bundle)
    output = predictor.manifest.output
    probabilities, labels, rois, seconds = [], [], [], []
    for case in cases:
        sample = dataset.read(case)
        assert sample.label is not None
        image = (sample.image * 255).round().byte().permute(1, 2, 0).numpy()
        start = time.perf_counter()
        found = predictor(image, tta=tta, region=np.ones(image.shape[:2], bool))
        seconds.append(time.perf_counter() - start)
        probabilities.append(found.probability[0])
        labels.append(sample.label.numpy())
        rois.append(None if sample.roi is None else sample.roi.numpy())
    scope = "fov" if "fov" in scopes else "whole"
    clean = None if output.cleaning is None else partial(clean_mask, rule=output.cleaning)
    threshold = output.thresholds[output.prediction]
    ours = binary_figures(
        probabilities, labels, rois, threshold, scope=scope, tubular=False, surface=False, clean=clean
    )
    theirs = scopes[scope][output.prediction]
    return {
        "images": len(cases),
        "tta": tta,
        "scope": scope,
        "view": output.prediction,
        "trained": {name: theirs[name] for name in FIGURES},
        "bundle": {name: float(ours[name]) for name in FIGURES},
        "seconds_per_image": float(np.median(seconds)),
    }


def table(results: list[dict[str, Any]]) -> str:
    """All kept results as Markdown."""
    lines = [
        "| | processor | bytes of the whole ensemble ÷ one float learner | latency ÷ one float learner in OpenVINO | "
        "in PyTorch | AUC, trained → file | Dice, trained → file |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        bench, test = result.get("bench"), result.get("test")
        bits = f"{result['weights']['bits'][0]} bits" if result["weights"]["bits"] else "float"
        name = f"{result['backbone']}, {bits}"
        machine = result["environment"]
        amx = "with" if "amx_int8" in machine["features"] else "without"
        processor = machine["processor"].replace("(R)", "").removesuffix(" Processor")
        cells = [f"{processor}, {amx} AMX", f"{result['bytes_ratio']:.3f}"]
        if bench:
            name += ", " + "×".join(map(str, reversed(bench["size"])))
            for engine in ("openvino", "torch"):
                pair = f" in openvino / one float network in {engine}"  # of an ensemble, or of a single network
                cells.append(next(f"{ratio:.2f}" for name, ratio in bench["ratios"].items() if name.endswith(pair)))
        else:
            cells += ["not measured"] * 2
        for figure in ("auc", "dice"):
            if test:
                cells.append(f"{test['trained'][figure]:.4f} → {test['bundle'][figure]:.4f}")
            else:
                cells.append("not measured")
        lines.append(f"| [{name}](experiments/deployment/{result['name']}.json) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table() -> None:
    """Puts the table of all kept results into the README."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    write_text(readme, f"{before}{START}\n{table(results)}\n{END}{after}")


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of one bundle."""
    bundle = read_bundle(options.bundle)
    manifest = bundle.manifest
    scored = None if options.result is None else json.loads(options.result.read_text(encoding="utf-8"))
    bench = None if options.bench is None else json.loads(options.bench.read_text(encoding="utf-8"))
    size = " ".join(map(str, bench["size"])) if bench else ""
    result: dict[str, Any] = {
        "name": options.out.stem,
        "commands": [
            f"d2ed2q train --config {_within(options.configuration)} --data DATA --out RUN"
            if scored is None
            else scored["command"],
            f"d2ed2q export RUN -o RUN.d2q --images {manifest.activations.images}",
            *([f"d2ed2q bench RUN.d2q --size {size}"] if size else []),
        ],
        "seed": manifest.provenance["seed"],
        "environment": environment(),
        "backbone": manifest.backbone,
        "weights": json.loads(manifest.to_json())["weights"],
        "activations": json.loads(manifest.to_json())["activations"],
        "validation": json.loads(manifest.to_json())["accuracy"],
        "temperature": manifest.output.temperature,
        "bytes": bundle.size,
        "bytes_ratio": bundle.size / (4 * manifest.weights.learner_parameters),
    }
    if bench:
        for row in bench["rows"]:
            row["seconds"] = [round(second, 5) for second in row["seconds"]]
        result["bench"] = {
            key: value for key, value in bench.items() if key not in ("model", "accuracy", "environment")
        }
        result["environment"] = bench["environment"]
    if scored is not None:
        result["test"] = test_figures(scored["few_bit"], scored["tta"], options.bundle, options.data)
        if result["test"]["images"] != scored["images"]:
            raise SystemExit(f"{options.result} is of {scored['images']} images, not of those at {options.data}")
    return result


def _within(path: Path) -> str:
    """A path as it reads in the repository's root."""
    return path.resolve().relative_to(ROOT).as_posix()


def main() -> int:
    """Keeps a result if one is given, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?", help="of the experiment, in experiments/results/")
    parser.add_argument("bundle", type=Path, nargs="?", help="what was exported from its run")
    parser.add_argument("--configuration", type=Path, help="instead of the result, the run's TOML file")
    parser.add_argument("--bench", type=Path, help="what d2ed2q bench wrote for the bundle")
    parser.add_argument("--data", type=Path, help="the dataset of the result")
    parser.add_argument("--out", type=Path, help="JSON file in experiments/deployment/")
    options = parser.parse_args()
    if options.configuration is not None and options.bundle is None:
        options.result, options.bundle = None, options.result
    if options.result is not None or options.bundle is not None:
        described = options.configuration is not None or None not in (options.result, options.data)
        if not described or None in (options.bundle, options.out):
            parser.error("give a result, its --data and a bundle, or --configuration and a bundle; and --out")
        write_text(options.out, json.dumps(kept(options), indent=1) + "\n")
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
