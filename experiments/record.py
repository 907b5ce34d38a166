"""Keeps a finished run's result beside its configuration, and writes the tables that are published from the results.

Usage::

    python experiments/record.py RUN experiments/drive-unet-s-4bit.toml   # after: d2ed2q evaluate RUN
    python experiments/record.py                                          # only the tables, from the results kept
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("dice", "auc", "average_precision", "sensitivity", "specificity", "mcc", "cldice", "ece", "brier")
VIEWS = ("meta", "ensemble", "base_mean", "base_1")
START, END = "<!-- results -->", "<!-- /results -->"


def kept(run: Path, configuration: Path) -> dict[str, Any]:
    """What is kept of a run: figures without single images, and everything that they depend on."""
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    card = json.loads((run / "model.json").read_text(encoding="utf-8"))
    trained = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))

    def scopes(source: dict[str, Any]) -> dict[str, Any]:
        return {
            scope: {view: {name: row[name] for name in FIGURES if name in row} for view, row in learners.items()}
            for scope, learners in source["scopes"].items()
        }

    return {
        "configuration": configuration.name,
        "command": f"d2ed2q train --config experiments/{configuration.name} --data DATA --out RUN",
        "seed": settings_from(run / "config.toml", TrainSettings).seed,
        "date": trained["date"],
        "machine": f"{trained['processor']}, {trained['cores']} cores",
        "packages": trained["packages"],
        "dataset": evaluation["dataset"]["name"],
        "split": {name: len(ids) for name, ids in data["splits"].items()},
        "sha256": data["sha256"],
        "training_minutes": round(card["training_seconds"] / 60, 1),
        "bits": card["bits"],
        "codebook": card["codebook"],
        "tta": evaluation["tta"],
        "prediction": evaluation["prediction"],
        "threshold": card["thresholds"][evaluation["prediction"]],
        "few_bit": scopes(evaluation),
        "full_precision": scopes(evaluation["full_precision"]),
        "diversity": evaluation["diversity"],
    }


def table(result: dict[str, Any]) -> str:
    """One result as Markdown."""
    bits = f"{result['bits'][0]} bits" if result["bits"] else "float"
    scope = "fov" if "fov" in result["few_bit"] else "whole"
    where = "inside the field of view" if scope == "fov" else "whole image"
    lines = [
        f"**{result['dataset'].upper()}**, {result['split']['test']} test images, {where}, pixels pooled, thresholds "
        f"from {result['split']['validation']} validation images; seed {result['seed']}, "
        f"{result['training_minutes']:.0f} minutes of training on {result['machine']}, {result['date'][:10]} "
        f"([configuration](experiments/{result['configuration']}), "
        f"[all figures](experiments/{Path(result['configuration']).stem}.json)):",
        "",
        f"| | AUC, float | AUC, {bits} | Dice, float | Dice, {bits} | calibration error, float | {bits} |",
        "|---|---|---|---|---|---|---|",
    ]
    for view in VIEWS:
        before, after = result["full_precision"][scope][view], result["few_bit"][scope][view]
        name = f"**{view}** (the prediction)" if view == result["prediction"] else view.replace("_", " ")
        cells = (f"{row[figure]:.4f}" for figure in ("auc", "dice", "ece") for row in (before, after))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables() -> None:
    """Puts the tables of all kept results into the README."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "experiments").glob("*.json"))]
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    tables = "\n\n".join(table(result) for result in results)
    readme.write_text(f"{before}{START}\n{tables}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Keeps a run if one is given, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder that was evaluated")
    parser.add_argument("configuration", type=Path, nargs="?", help="its TOML file in experiments/")
    options = parser.parse_args()
    if (options.run is None) != (options.configuration is None):
        parser.error("give both the run folder and its configuration, or neither")
    if options.run is not None:
        if not (options.run / "evaluation.json").is_file():
            parser.error(f"{options.run} has no evaluation.json; run: d2ed2q evaluate {options.run}")
        target = ROOT / "experiments" / f"{options.configuration.stem}.json"
        target.write_text(json.dumps(kept(options.run, options.configuration), indent=1) + "\n", encoding="utf-8")
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
