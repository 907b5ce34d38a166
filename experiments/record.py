"""Keeps a finished run's result beside its configuration, and writes the tables that are published from the results.

Usage::

    python experiments/record.py RUN experiments/drive-unet-s-4bit.toml   # after: d2ed2q evaluate RUN
    python experiments/record.py                                          # only the tables, from the results kept
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
FIGURES = (
    *(
        "dice",
        "auc",
        "average_precision",
        "sensitivity",
        "specificity",
        "mcc",
        "cldice",
        "ece",
        "brier",
        "hd95",
        "assd",
    ),
    "per_class",
)
VIEWS = ("meta", "ensemble", "base_mean", "base_1")
_NAMES = {
    "drive": "DRIVE",
    "chase_db1": "CHASE_DB1",
    "stare": "STARE",
    "glas": "GlaS",
    "isbi2012": "ISBI 2012",
    "kvasir_seg": "Kvasir-SEG",
    "decathlon": "Hippocampus",
}
_WHERE = {"fov": "inside the field of view", "whole": "whole image"}
_SCORED = {"test": "test images", "fold": "images of a fold that was left out", "validation": "validation images"}
_PAGE = """# Results

Every table here is written by `python experiments/record.py` from the results that are kept in `experiments/`: a JSON
file for each, with the command, seed, machine, versions, date and the checksums of the images. Each is one seed: what
is nearer than a few thousandths may be chance. Quantities: [evaluation in training.md](training.md#evaluation)."""
_BUDGET = """## With nothing but a budget

`python experiments/budget.py --data DATA --out RUN` trains with `--budget` alone, and compares the prediction's Dice
with the best mask that is one class everywhere, and with the best threshold on intensity (channel, direction and
threshold chosen on the training images; of several classes the mean, each with its own)."""
START, END = "<!-- results -->", "<!-- /results -->"


def kept(run: Path, configuration: Path, evaluated: Path, name: str) -> dict[str, Any]:
    """What is kept of a run: figures without single images, and everything that they depend on.

    Args:
        run: its folder.
        configuration: its TOML file.
        evaluated: folder with its ``evaluation.json``.
        name: of the result.
    """
    evaluation = json.loads((evaluated / "evaluation.json").read_text(encoding="utf-8"))
    card = json.loads((run / "model.json").read_text(encoding="utf-8"))
    trained = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    other = evaluated.resolve() != run.resolve()

    def scopes(source: dict[str, Any]) -> dict[str, Any]:
        return {
            scope: {view: {name: row[name] for name in FIGURES if name in row} for view, row in learners.items()}
            for scope, learners in source["scopes"].items()
        }

    def objects(source: dict[str, Any]) -> dict[str, Any]:
        return {figure: value for figure, value in (source.get("objects") or {}).items() if figure != "per_image"}

    found = {"few_bit": objects(evaluation), "full_precision": objects(evaluation["full_precision"])}
    command = f"d2ed2q train --config experiments/{configuration.name} --data DATA --out RUN"
    scored = f"d2ed2q evaluate RUN --data {'OTHER --out OUT' if other else 'DATA'}"
    scale = evaluation.get("scale", 1.0)
    return {
        "name": name,
        "configuration": configuration.name,
        "command": command,
        "scored_by": scored + (f" --scale {scale:g}" if other and scale != 1 else ""),
        "seed": settings_from(run / "config.toml", TrainSettings).seed,
        "date": trained["date"],
        "machine": f"{trained['processor']}, {trained['cores']} cores",
        "packages": trained["packages"],
        "backbone": card["backbone"],
        "learners": card["learners"],
        "dataset": evaluation["dataset"]["name"],
        "trained_on": data["dataset"],
        "scored": evaluation["dataset"]["split"],
        "images": len(evaluation["images"]),
        "split": {part: len(ids) for part, ids in data["splits"].items()},
        "sha256": data["sha256"],
        "training_minutes": round(card["training_seconds"] / 60, 1),
        "bits": card["bits"],
        "codebook": card["codebook"],
        "tta": evaluation["tta"],
        "prediction": evaluation["prediction"],
        "threshold": card["thresholds"][evaluation["prediction"]],
        "few_bit": scopes(evaluation),
        "full_precision": scopes(evaluation["full_precision"]),
        "objects": found if found["few_bit"] else None,
        "diversity": evaluation["diversity"],
    }


def table(result: dict[str, Any]) -> str:
    """One result as Markdown: every view, in full precision and in few bits."""
    bits, scope = _bits(result), _scope(result)
    scored = result.get("scored", "test")
    ranking = [name for name in ("auc",) if name in result["few_bit"][scope]["meta"]]
    headings = {"auc": "AUC", "dice": "Dice", "ece": "calibration error"}
    lines = [
        f"**{_title(result)}**: {result['images']} {_SCORED[scored]}, {_WHERE[scope]}, pixels pooled, thresholds from "
        f"{result['split']['validation']} validation images; seed {result['seed']}, "
        f"{result['training_minutes']:.0f} minutes of training on {result['machine']}, {result['date'][:10]} "
        f"([configuration](../experiments/{result['configuration']}), "
        f"[all figures](../experiments/{result['name']}.json)):",
        "",
        "| | " + " | ".join(f"{headings[name]}, float | {bits}" for name in (*ranking, "dice", "ece")) + " |",
        "|---" * (1 + 2 * (len(ranking) + 2)) + "|",
    ]
    for view in VIEWS:
        before, after = result["full_precision"][scope][view], result["few_bit"][scope][view]
        name = f"**{view}** (the prediction)" if view == result["prediction"] else view.replace("_", " ")
        cells = (f"{row[figure]:.4f}" for figure in (*ranking, "dice", "ece") for row in (before, after))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def overview(results: Sequence[dict[str, Any]]) -> str:
    """All results as one Markdown table, a row each: the prediction, in full precision and in few bits."""
    lines = [
        "| data | images scored | network | AUC, float → few bits | Dice, float → few bits | one base learner's Dice | "
        "object F1 | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        scope, view = _scope(result), result["prediction"]
        before, after = result["full_precision"][scope][view], result["few_bit"][scope][view]
        objects = result.get("objects")
        cells = [
            f"[{_title(result)}](experiments/{result['name']}.json)",
            f"{result['images']}, {_WHERE[scope]}",
            f"{result['learners'] + 1} × {result['backbone']}, {_bits(result)}",
            f"{before['auc']:.4f} → {after['auc']:.4f}" if "auc" in after else "–",
            f"{before['dice']:.4f} → {after['dice']:.4f}",
            f"{result['few_bit'][scope]['base_1']['dice']:.4f}",
            f"{objects['few_bit']['object_f1']:.3f}" if objects else "–",
            f"{result['training_minutes']:.0f} min",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole of docs/results.md."""
    budget = _budget()
    kept_budget = budget.results()
    parts = [_PAGE, *(table(result) for result in results)]
    if kept_budget:
        parts += [_BUDGET, budget.table(kept_budget)]
    return "\n\n".join(parts) + "\n"


def _budget() -> ModuleType:
    """The script beside this one, which has the table of budgets."""
    spec = importlib.util.spec_from_file_location("budget", Path(__file__).with_name("budget.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _title(result: dict[str, Any]) -> str:
    dataset = _NAMES.get(result["dataset"], result["dataset"])
    trained = result.get("trained_on", result["dataset"])
    return dataset if trained == result["dataset"] else f"{dataset}, by a model of {_NAMES.get(trained, trained)}"


def _bits(result: dict[str, Any]) -> str:
    return f"{result['bits'][0]} bits" if result["bits"] else "float"


def _scope(result: dict[str, Any]) -> str:
    return "fov" if "fov" in result["few_bit"] else "whole"


def results() -> list[dict[str, Any]]:
    """All results that are kept."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "experiments").glob("*.json"))]


def write_tables() -> None:
    """Puts the table of all kept results into the README, and the long ones into docs/results.md."""
    kept_results = results()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{START}\n{overview(kept_results)}\n{END}{after}", encoding="utf-8")
    (ROOT / "docs" / "results.md").write_text(page(kept_results), encoding="utf-8")


def main() -> int:
    """Keeps a run if one is given, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run folder that was evaluated")
    parser.add_argument("configuration", type=Path, nargs="?", help="its TOML file in experiments/")
    parser.add_argument("--evaluated", type=Path, help="folder of another evaluation, that d2ed2q evaluate --out wrote")
    parser.add_argument("--name", help="name of the result; by default that of the configuration")
    options = parser.parse_args()
    if (options.run is None) != (options.configuration is None):
        parser.error("give both the run folder and its configuration, or neither")
    if options.run is not None:
        evaluated = options.evaluated or options.run
        if not (evaluated / "evaluation.json").is_file():
            parser.error(f"{evaluated} has no evaluation.json; run: d2ed2q evaluate {options.run}")
        name = options.name or options.configuration.stem
        result = kept(options.run, options.configuration, evaluated, name)
        (ROOT / "experiments" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main())
