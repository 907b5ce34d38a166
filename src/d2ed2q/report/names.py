"""What readers call things: learners, figures, scopes and phases; and how numbers are written."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "FIGURE_NAMES",
    "FLOAT_NETWORK",
    "NOT_MEASURED",
    "finite",
    "learner_name",
    "number",
    "phase_name",
    "scope_name",
    "signed",
]

NOT_MEASURED = "not measured"
FLOAT_NETWORK = "one float network"
"""What a bundle is measured beside."""

FIGURE_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "auc": "ROC-AUC",
    "average_precision": "Average precision",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "mcc": "MCC",
    "cldice": "clDice",
    "hd95": "HD95",
    "assd": "ASSD",
    "threshold": "Threshold",
    "ece": "Calibration error",
    "brier": "Brier score",
    "nll": "Negative log-likelihood",
    "aurc": "AURC",
    "object_f1": "Object F1",
    "object_precision": "Object precision",
    "object_recall": "Object recall",
    "object_dice": "Object Dice",
    "object_hausdorff": "Object Hausdorff",
}
_SCOPE_NAMES = {"fov": "inside the region of interest", "whole": "on the whole image"}


def scope_name(scope: str) -> str:
    """``fov`` → ``inside the region of interest``; an unknown scope keeps its name."""
    return _SCOPE_NAMES.get(scope, scope)


def learner_name(learner: str) -> str:
    """``base_2`` → ``Base learner 2``; an unknown learner keeps its name."""
    fixed = {"ensemble": "Ensemble mean", "meta": "Meta learner", "base_mean": "Mean of base learners"}
    head, _, index = learner.partition("_")
    if head == "base" and index.isdigit():
        return f"Base learner {index}"
    return fixed.get(learner, learner)


def phase_name(phase: str) -> str:
    """``quantization_2`` → ``step 2``; others lose their underscores."""
    head, _, index = phase.partition("_")
    return f"step {index}" if head == "quantization" and index.isdigit() else phase.replace("_", " ")


def finite(value: Any) -> float | None:
    """The number, or None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 4, missing: str = NOT_MEASURED) -> str:
    """Writes a figure with a fixed number of digits; ``missing`` for None, NaN and infinity."""
    known = finite(value)
    return missing if known is None else f"{known:.{digits}f}"


def signed(difference: float, digits: int = 4) -> str:
    """Writes a difference with its sign, ``±0.0000`` where it rounds to nothing; a true minus."""
    text = f"{abs(difference):.{digits}f}"
    if not float(text):
        return f"±{text}"
    return ("+" if difference > 0 else "−") + text
