"""What the doubt is good for: does it know images that the model cannot segment?

Usage::

    python experiments/doubt.py src/d2ed2q/zoo/retina-vessels.d2q --data DRIVE --other GlaS Kvasir-SEG ISBI2012 \
        --name drive-unet-xs-4bit

Test images are blurred and darkened by degrees, and images of other kinds are put in their place. For every measure of
an image's doubt, and every kind of unusable image, the result says how well the measure alone tells them from the
untouched test images (area under the ROC curve), and how it goes with the Dice that the mask really has (Spearman's ρ,
untouched and spoilt images of the set together). It also says which part of each kind is refused: by the bound that
the bundle has, and by the highest doubt of any untouched image. It is written to ``experiments/doubt/NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from scipy.stats import spearmanr

from d2ed2q.data import open_dataset
from d2ed2q.deploy import Prediction, Predictor, read_bundle
from d2ed2q.files import write_text
from d2ed2q.metrics import Ranking
from d2ed2q.recipes.environment import environment

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "doubt"
DOUBT = "1 − agreement of learners"  # what a bundle refuses by
SPOILT: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{f"blurred, σ {s} pixels": (lambda image, s=s: image.filter(ImageFilter.GaussianBlur(s))) for s in (2, 4, 8)},  # type: ignore[misc]
    **{f"darkened to {f}": (lambda image, f=f: image.point(lambda v: v * f)) for f in (0.5, 0.25, 0.1)},  # type: ignore[misc]
}


def expected_dice(probability: np.ndarray, mask: np.ndarray) -> float:
    """Dice that a mask has on average, were every pixel foreground with its probability."""
    total = probability.sum() + mask.sum()
    return float(2 * probability[mask].sum() / total) if mask.any() and total else 0.0


def agreement(learners: np.ndarray) -> float:
    """Mean soft Dice of all pairs of learners; 0 where nobody finds anything. ``(K+1)×*spatial``."""
    flat = learners.reshape(len(learners), -1).astype(np.float64)
    size = (flat**2).sum(1)
    pairs = [
        2 * (flat[i] @ flat[j]) / (size[i] + size[j]) if size[i] + size[j] > 1 else 0.0
        for i in range(len(flat))
        for j in range(i)
    ]
    return float(np.mean(pairs))


def measures(prediction: Prediction, region: np.ndarray) -> dict[str, float]:
    """Measures of an image's doubt; larger is more."""
    probability, mask = prediction.probability[0], prediction.mask > 0
    return {
        "mean entropy": float(prediction.uncertainty[region].mean()),
        "mean disagreement": float(prediction.disagreement[region].mean()),
        "entropy by foreground": float(prediction.uncertainty[region].sum() / max(probability[region].sum(), 1)),
        "disagreement by foreground": float(prediction.disagreement[region].sum() / max(probability[region].sum(), 1)),
        "1 − expected Dice": 1 - expected_dice(probability[region], mask[region]),
        DOUBT: 1 - agreement(prediction.learners[:, 0][:, region]),
    }


def images(options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Kind, image and label: untouched, spoilt, and of other kinds (without a label)."""
    cases = open_dataset(options.data).test
    size = (0, 0)
    for case in cases:
        sample = open_dataset(options.data).read(case)
        assert sample.label is not None
        picture = Image.fromarray((sample.image * 255).round().byte().permute(1, 2, 0).numpy())
        size = picture.size
        label = sample.label.numpy() > 0
        yield "untouched", np.asarray(picture), label
        for kind, spoil in SPOILT.items():
            yield kind, np.asarray(spoil(picture)), label
    for other in options.other:
        dataset = open_dataset(other)
        for case in (*dataset.test, *dataset.train)[: len(cases)]:
            values = (dataset.read(case).image * 255).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).convert("RGB")
            yield dataset.name, np.asarray(picture.resize(size)), None


def main() -> int:
    """Measures and keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the set that the model was trained on")
    parser.add_argument("--other", type=Path, nargs="*", default=[], help="folders of sets of another kind")
    parser.add_argument("--tta", default="none")
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    bundle = read_bundle(options.model)
    predictor = Predictor(bundle)
    rows: list[dict[str, Any]] = []
    for kind, image, label in images(options):
        prediction = predictor(image, tta=options.tta)
        region = np.ones(image.shape[:2], bool)
        mask = prediction.mask > 0
        dice = None if label is None else float(2 * (mask & label).sum() / max(mask.sum() + label.sum(), 1))
        rows.append({"kind": kind, "dice": dice, **measures(prediction, region)})
        print(kind, dice, {key: round(value, 4) for key, value in rows[-1].items() if isinstance(value, float)})
    names = [name for name in rows[0] if name not in ("kind", "dice")]
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "untouched"]
    bounds = {"the highest doubt of an untouched image": _highest(rows)}
    if bundle.manifest.refusal is not None:
        bounds = {"the bound of the model": bundle.manifest.refusal.doubt} | bounds
    result: dict[str, Any] = {
        "model": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "command": f"python experiments/doubt.py MODEL.d2q --data DATA --other OTHERS --tta {options.tta} "
        f"--name {options.name}",
        "tta": options.tta,
        "images": sum(row["kind"] == "untouched" for row in rows),
        "dice": {
            kind: float(np.mean([row["dice"] for row in rows if row["kind"] == kind]))
            for kind in ("untouched", *SPOILT)
        },
        "auc": {name: {kind: _auc(rows, name, kind) for kind in kinds} for name in names},
        "refused": [
            {"by": by, "above": bound, "share": {kind: _above(rows, kind, bound) for kind in ("untouched", *kinds)}}
            for by, bound in bounds.items()
        ],
        "spearman": {name: _spearman(rows, name) for name in names},
        "rows": rows,
        "environment": {key: value for key, value in environment().items() if key != "command"},
    }
    write_text(KEPT / f"{options.name}.json", json.dumps(result, indent=1) + "\n")
    for name in names:
        print(f"{name:28} ρ {result['spearman'][name]:+.3f} ", {k: round(v, 3) for k, v in result["auc"][name].items()})
    return 0


def _highest(rows: list[dict[str, Any]]) -> float:
    return float(max(row[DOUBT] for row in rows if row["kind"] == "untouched"))


def _above(rows: list[dict[str, Any]], kind: str, bound: float) -> float:
    return float(np.mean([row[DOUBT] > bound for row in rows if row["kind"] == kind]))


def _auc(rows: list[dict[str, Any]], name: str, kind: str) -> float:
    chosen = [row for row in rows if row["kind"] in ("untouched", kind)]
    values = np.array([row[name] for row in chosen], np.float32)
    return float(Ranking(values, np.array([row["kind"] == kind for row in chosen])).roc_auc())


def _spearman(rows: list[dict[str, Any]], name: str) -> float:
    known = [row for row in rows if row["dice"] is not None]
    return float(spearmanr([row[name] for row in known], [row["dice"] for row in known]).statistic)


if __name__ == "__main__":
    sys.exit(main())
