"""The tables of what is measured beside trainings: budgets, doubt and thresholds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ed2q.recipes.experiment_figures import read_kept

__all__ = ["measured_tables"]

_BUDGET = """## With nothing but a budget

`python experiments/budget.py --data DATA --out RUN` trains with `--budget` alone, and compares the prediction's Dice
with the best mask that is one class everywhere, and with the best threshold on intensity (channel, direction and
threshold chosen on the training images; of several classes the mean, each with its own). What a plan chooses has
changed since the older of these runs; each file has its date and its command (sets without test images are scored on
`--folds 5 --fold 0`)."""

_DOUBT = """## Does the doubt know?

`python experiments/doubt.py MODEL.d2q --data DATA --other …` blurs and darkens test images, and puts images of other
kinds in their place. The table has the area under the ROC curve with which a measure alone tells them from untouched
ones (1 is always, 0.5 is chance, 0 is always the wrong way round), and its rank correlation with the Dice that the
masks really have, over untouched, blurred and darkened images together: mostly it tells those apart. The last one is
the `doubt` that a node can refuse images by. A model's own bound keeps what is blurred or dark and can still be used;
images of other kinds may have less doubt than those, and pass. `--refuse NUMBER`, with the highest doubt of good images
of one's own, refuses both."""

_THRESHOLDS = """## Thresholds of few images

`python experiments/thresholds.py NAME RUNS` takes runs of the tables of recipes and of learning rates, and chooses each
one's threshold on its validation images, and on training and validation images together. Mean Dice of the images that
neither has seen, at these thresholds and at the best one there is; and how far below that the worst run is. A plan
(`--budget`) takes all labelled images where fewer than 20 validate and there is time."""


def measured_tables(folder: Path) -> list[str]:
    """Headings and tables of all that was measured, below the folder of experiments."""
    parts = []
    budgets = [result for _, result in _kept(folder / "budget")]
    if budgets:
        parts += [_BUDGET, _budget_table(budgets)]
    doubts = _kept(folder / "doubt", "auc", "dice", "images", "refused", "spearman", "tta")
    if doubts:
        parts += [_DOUBT, *(_doubt_table({**result, "name": name}) for name, result in doubts)]
    thresholds = _kept(folder / "thresholds")
    if thresholds:
        parts += [_THRESHOLDS, _thresholds_table(thresholds)]
    return parts


def _kept(folder: Path, *keys: str) -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, read_kept(path, keys)) for path in sorted(folder.glob("*.json"))]


def _thresholds_table(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Mean Dice at thresholds of few and of all labelled images, a line for each dataset."""
    lines = [
        "| data | runs | validation images | Dice at their threshold | furthest below the best "
        "| all labelled images | Dice at their threshold | furthest below the best | Dice at the best threshold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results:
        rows = result["rows"]
        cells = [f"[{name}](../experiments/thresholds/{name}.json)", str(len(rows))]
        for part in ("validation", "all"):
            least = min(row["dice"][part] - row["dice"]["best"] for row in rows)
            cells += [str(max(row["images"][part] for row in rows)), _mean_dice(rows, part)]
            cells.append(f"{least:.4f}".replace("-", "−"))
        lines.append("| " + " | ".join([*cells, _mean_dice(rows, "best")]) + " |")
    return "\n".join(lines)


def _mean_dice(rows: Sequence[dict[str, Any]], part: str) -> str:
    return f"{statistics.fmean(row['dice'][part] for row in rows):.4f}"


def _budget_table(results: Sequence[dict[str, Any]]) -> str:
    """Trainings with nothing but a budget, beside what needs no training."""
    lines = [
        "| data | budget | took | network | images scored | Dice in 4 bits | Dice of the best constant mask "
        "| Dice of the best threshold on intensity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [
            f"[{result['dataset']}](../experiments/budget/{result['dataset']}.json)",
            f"{result['budget_seconds'] / 60:g} min",
            f"{result['seconds'] / 60:.1f} min",
            result["backbone"],
            str(result["images"]),
            *(f"{result[name]:.4f}" for name in ("dice", "constant", "threshold")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _doubt_table(result: dict[str, Any]) -> str:
    """How well measures of an image's doubt tell spoilt and foreign images from untouched ones."""
    kinds = list(next(iter(result["auc"].values())))
    lines = [
        f"Model {result['name']}, {result['images']} images of each kind (test images first, where there are too few "
        f"training images as well), test-time augmentation {result['tta']} "
        f"([all figures](../experiments/doubt/{result['name']}.json)):",
        "",
        "| measure | " + " | ".join(kinds) + " | ρ with the true Dice |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for measure, found in result["auc"].items():
        cells = [f"{found[kind]:.3f}" for kind in kinds]
        lines.append(
            f"| {measure} | " + " | ".join(cells) + f" | {result['spearman'][measure]:.2f} |".replace("-", "−")
        )
    dice = ", ".join(f"{value:.3f} {kind}" for kind, value in result["dice"].items())
    lines += ["", f"Dice that the masks really have: {dice}."]
    refused = result["refused"]
    kinds = list(refused[0]["share"])
    lines += ["", "| part that is refused | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for row in refused:
        cells = [f"{row['share'][kind]:.2f}" for kind in kinds]
        lines.append(f"| above {row['above']:.4f}, {row['by']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
