"""The files that a job leaves behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image

from d2ed2q.deploy.dicom_results import dicom_overlay, dicom_segmentation, encoded
from d2ed2q.ensemble import learner_names
from d2ed2q.report import as_bytes, overlay, uncertainty_map
from d2ed2q.serve.inputs import Input
from d2ed2q.serve.model import Model, Outcome

__all__ = ["RESULTS", "result_file", "result_names"]

RESULTS = ("mask.png", "overlay.png", "probability.png", "doubt.png", "summary.json")
"""What there is of every image; of a DICOM image ``segmentation.dcm`` and ``overlay.dcm`` too."""


def result_names(model: Model, dicom: bool) -> tuple[str, ...]:
    """Names of all results of an image."""
    learners = tuple(f"learner-{name}.png" for name in learner_names(model.manifest.output.learners))
    return (*RESULTS, *learners, *(("segmentation.dcm", "overlay.dcm") if dicom else ()))


def result_file(
    name: str, model: Model, given: Input, outcome: Outcome, segmentation: Literal["binary", "fractional"] = "binary"
) -> bytes:
    """One result of an image, by its name.

    Raises:
        DataError: of a DICOM image, it lacks what its results need.
        KeyError: there is no such result.
    """
    prediction = outcome.prediction
    binary = len(prediction.probability) == 1
    mask = prediction.mask
    if name.startswith("learner-"):
        index = learner_names(model.manifest.output.learners).index(name[8:-4])
        return _png(as_bytes(_foreground(prediction.learners[index])))
    makers: dict[str, Callable[[], bytes]] = {
        "mask.png": lambda: _png(mask.astype(np.uint8) * (255 if binary else 1)),
        "overlay.png": lambda: _png(overlay(given.shown, mask > 0)),
        "probability.png": lambda: _png(as_bytes(_foreground(prediction.probability))),
        "doubt.png": lambda: _png(uncertainty_map(prediction.uncertainty)),
        "summary.json": lambda: json.dumps(dict(outcome.summary), indent=1).encode(),
    }
    if given.dicom is not None:
        source, manifest, sha256 = given.dicom, model.manifest, model.bundle.sha256
        makers["segmentation.dcm"] = lambda: encoded(
            dicom_segmentation(source, prediction, manifest, sha256, segmentation)
        )
        makers["overlay.dcm"] = lambda: encoded(dicom_overlay(source, overlay(given.shown, mask > 0), manifest, sha256))
    return makers[name]()


def _foreground(probability: np.ndarray) -> np.ndarray:
    foreground: np.ndarray = probability[0] if len(probability) == 1 else 1 - probability[0]
    return foreground


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
