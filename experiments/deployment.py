r"""Scores a bundle on test images beside the run it was exported from, and keeps the result with its measurements.

Usage::

    d2ed2q evaluate RUN --data DRIVE
    d2ed2q export RUN -o RUN.d2q
    d2ed2q bench RUN.d2q --out bench.json
    python experiments/deployment.py RUN RUN.d2q --configuration experiments/drive-unet-s-4bit.toml \
        --bench bench.json --out experiments/deployment/drive-unet-s-4bit.json
    python experiments/deployment.py   # only the tables, from the results kept
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.data import open_dataset
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.metrics import binary_figures
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "deployment"
START, END = "<!-- deployment -->", "<!-- /deployment -->"
FIGURES = ("dice", "auc", "average_precision", "sensitivity", "specificity", "ece", "brier", "nll")


def test_figures(run: RunFolder, bundle: Path, data: Path | None) -> dict[str, Any]:
    """Figures of the prediction on all test images, of the trained weights in PyTorch and of the bundle."""
    evaluation, recorded = run.read_json(run.evaluation), run.read_json(run.data)
    dataset = open_dataset(data or Path(recorded["root"]))
    cases = [case for case in dataset.test if case.id in evaluation["images"]]
    predictor = Predictor(bundle)
    output = predictor.manifest.output
    probabilities, labels, rois, seconds = [], [], [], []
    for case in cases:
        sample = dataset.read(case)
        assert sample.label is not None
        image = (sample.image * 255).round().byte().permute(1, 2, 0).numpy()
        start = time.perf_counter()
        found = predictor(image, tta=evaluation["tta"], region=np.ones(image.shape[:2], bool))
        seconds.append(time.perf_counter() - start)
        probabilities.append(found.probability[0])
        labels.append(sample.label.numpy())
        rois.append(None if sample.roi is None else sample.roi.numpy())
    scope = "fov" if "fov" in evaluation["scopes"] else "whole"
    ours = binary_figures(
        probabilities, labels, rois, output.thresholds[output.prediction], scope=scope, tubular=False, surface=False
    )
    theirs = evaluation["scopes"][scope][output.prediction]
    return {
        "images": len(cases),
        "tta": evaluation["tta"],
        "scope": scope,
        "view": output.prediction,
        "trained": {name: theirs[name] for name in FIGURES},
        "bundle": {name: float(ours[name]) for name in FIGURES},
        "seconds_per_image": float(np.median(seconds)),
    }


def table(results: list[dict[str, Any]]) -> str:
    """All kept results as Markdown."""
    lines = [
        "| | bytes of the whole ensemble ÷ one float learner | latency ÷ one float learner in OpenVINO | in PyTorch | "
        "AUC, trained → file | Dice, trained → file |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        bench, test = result.get("bench"), result.get("test")
        bits = f"{result['weights']['bits'][0]} bits" if result["weights"]["bits"] else "float"
        name = f"{result['backbone']}, {bits}"
        cells = [f"{result['bytes_ratio']:.3f}"]
        if bench:
            name += ", " + "×".join(map(str, reversed(bench["size"])))
            for engine in ("openvino", "torch"):
                cells.append(f"{bench['ratios'][f'ensemble in openvino / one float network in {engine}']:.2f}")
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
    readme.write_text(f"{before}{START}\n{table(results)}\n{END}{after}", encoding="utf-8")


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of one bundle."""
    bundle = read_bundle(options.bundle)
    manifest, run = bundle.manifest, RunFolder(options.run)
    bench = None if options.bench is None else json.loads(options.bench.read_text(encoding="utf-8"))
    size = " ".join(map(str, bench["size"])) if bench else ""
    result: dict[str, Any] = {
        "name": options.out.stem,
        "commands": [
            f"d2ed2q train --config experiments/{options.configuration.name} --data DATA --out RUN",
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
    if run.evaluation.is_file():
        result["test"] = test_figures(run, options.bundle, options.data)
    return result


def main() -> int:
    """Keeps a result if one is given, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder; its test figures are kept if it was evaluated")
    parser.add_argument("bundle", type=Path, nargs="?", help="the bundle that was exported from it")
    parser.add_argument("--configuration", type=Path, help="the run's TOML file in experiments/")
    parser.add_argument("--bench", type=Path, help="what d2ed2q bench wrote for the bundle")
    parser.add_argument("--data", type=Path, help="the dataset, if it is not where the run was trained")
    parser.add_argument("--out", type=Path, help="JSON file in experiments/deployment/")
    options = parser.parse_args()
    if options.run is not None:
        if options.bundle is None or options.configuration is None or options.out is None:
            parser.error("a run takes a bundle, --configuration and --out")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(kept(options), indent=1) + "\n", encoding="utf-8")
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
