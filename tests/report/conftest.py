"""A made-up but realistic finished run, small enough to render in an instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from d2ed2q.report import Example, RunReport, WeightHistogram

LEARNERS = ("ensemble", "meta", "base_mean", "base_1", "base_2", "base_3")


def history(epochs: int = 40, epochs_q: int = 10) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    epoch = 0
    fractions = {"full_precision": 0.0, **{f"quantization_{i}": f for i, f in enumerate((0.3, 0.6, 0.8, 1.0), 1)}}
    for phase, fraction in fractions.items():
        rows.append({"kind": "phase", "phase": phase, "epoch": epoch})
        if fraction:
            rows[-1]["frozen_fraction"] = fraction
        for i in range(epochs if phase == "full_precision" else epochs_q):
            epoch += 1
            loss = 0.28 + 0.5 * np.exp(-epoch / 12) + 0.1 * fraction * np.exp(-i / 3)
            row = {"kind": "train", "phase": phase, "epoch": epoch, "loss": loss, "segmentation": loss + 0.03}
            rows.append({**row, "diversity": 1.2, "lr": 1e-3, "seconds": 3.0 * epoch})
            if epoch % 5 == 0:
                figures = {"auc": 0.976 - 0.2 * np.exp(-epoch / 10), "dice": 0.815 - 0.3 * np.exp(-epoch / 12)}
                rows.append({"kind": "validation", "phase": phase, "epoch": epoch, **figures})
    return rows


def figures(dice: float, images: int) -> dict[str, Any]:
    values = [dice + 0.03 * np.sin(2.3 * i) for i in range(images)]
    return {
        "dice": dice,
        "iou": dice / (2 - dice),
        "auc": 0.9 + 0.09 * dice,
        "average_precision": dice + 0.08,
        "accuracy": 0.955,
        "sensitivity": 0.79,
        "specificity": 0.979,
        "mcc": dice - 0.02,
        "cldice": dice + 0.01,
        "ece": 0.0123,
        "brier": 0.0331,
        "nll": 0.1092,
        "aurc": 0.0071,
        "threshold": 0.431,
        "per_image": {"dice": {"mean": float(np.mean(values)), "std": 0.021, "values": values}},
    }


def scored(shift: float, images: int) -> dict[str, Any]:
    dice = dict(zip(LEARNERS, (0.806, 0.8145, 0.8, 0.796, 0.799, 0.801), strict=True))
    scopes = {
        scope: {name: figures(value + shift + extra, images) for name, value in dice.items()}
        for scope, extra in (("fov", 0.0), ("whole", -0.002))
    }
    cka = {"encoder_1": 0.91, "encoder_2": 0.72, "centre": 0.38, "decoder_2": 0.55, "decoder_1": 0.83}
    return {
        "prediction": "meta",
        "scopes": scopes,
        "diversity": {
            "disagreement": 0.0213 + shift,
            "q_statistic": 0.987,
            "cka": {tap: value + shift for tap, value in cka.items()},
        },
    }


def curves(sharpness: float) -> dict[str, Any]:
    fpr = np.linspace(0, 1, 2000) ** 3
    predicted = np.linspace(0.002, 0.99, 15)
    share = np.geomspace(0.3, 0.01, 15)
    result = {}
    for index, name in enumerate(LEARNERS):
        tpr = fpr ** (1 / (sharpness + index))
        coverage = np.linspace(0.01, 1, 200)
        result[name] = {
            "roc": (fpr, tpr),
            "reliability": (predicted, predicted**1.15, share / share.sum()),
            "risk": (coverage, 0.05 * coverage**3),
        }
    return result


def layers(count: int, values: int = 2000) -> list[WeightHistogram]:
    generator = np.random.default_rng(5)
    levels = np.array([0, 1, 2, 5, 11, 25, 57, 127]) / 127
    levels = np.unique(np.concatenate([-levels, levels]))
    result = []
    for index in range(count):
        before = generator.normal(0, 0.25, values).clip(-1, 1)
        after = levels[np.abs(before[:, None] - levels).argmin(1)]
        result.append(WeightHistogram(f"base.{index}.encoder.3.conv.weight", 4, before, after, 15))
    return result


def example(role: str, size: int = 48) -> Example:
    generator = np.random.default_rng(len(role))
    rows, columns = np.mgrid[:size, :size]
    roi = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (0.48 * size) ** 2
    label = (np.abs(rows - size / 2 - 0.2 * size * np.sin(columns / size * 7)) < 0.05 * size) & roi
    probability = np.where(label, 0.8, 0.1) + generator.normal(0, 0.12, (size, size))
    probability = np.where(roi, probability, 0.0).clip(0, 1)
    image = np.full((size, size, 3), (190, 90, 50)) - 70 * label[..., None] + generator.integers(0, 20, (size, size, 1))
    return Example(
        role=role,
        id=f"{role}_test",
        dice=0.8,
        image=(image * roi[..., None]).astype(np.uint8),
        label=label,
        mask=probability > 0.5,
        probability=probability,
        uncertainty=1 - np.abs(2 * probability - 1),
        roi=roi,
    )


def full_report(images: int = 20) -> RunReport:
    return RunReport(
        title="unet-s ensemble on DRIVE",
        summary={
            "dataset": f"DRIVE, {images} images scored",
            "backbone": "unet-s, 3 base learners and a meta learner",
            "parameters": "503,236",
            "size": "0.21 MB",
            "bits": "4",
            "codebook": "geometric",
            "prediction": "meta",
            "threshold": "0.431, chosen on validation images",
            "training time": "44 minutes",
            "seed": "0",
        },
        history=history(),
        evaluation={
            **scored(0.0, images),
            "full_precision": scored(0.0009, images),
            "images": [f"{index:02d}_test" for index in range(1, images + 1)],
        },
        curves={"few_bit": curves(12.0), "full_precision": curves(11.0)},
        weights=layers(4),
        examples=[example("best"), example("median"), example("worst")],
        provenance={"trained by": "d2ed2q train --data DRIVE --out run", "versions": "torch 2.13"},
    )


@pytest.fixture(scope="session")
def report() -> RunReport:
    """A run with everything measured."""
    return full_report()


@pytest.fixture(scope="session")
def make_example() -> Callable[..., Example]:
    """Draws an example: ``make_example(role, size=48)``."""
    return example


@pytest.fixture(scope="session")
def make_layers() -> Callable[..., list[WeightHistogram]]:
    """Draws layers: ``make_layers(count, values=2000)``."""
    return layers
