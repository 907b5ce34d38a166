"""What is kept of a job: maps of a byte a pixel in one file, from which every result is made when it is asked for."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from d2ed2q.deploy import Manifest
from d2ed2q.deploy.dicom_results import dicom_overlay, dicom_segmentation, encoded
from d2ed2q.deploy.prediction import Prediction
from d2ed2q.ensemble import learner_names
from d2ed2q.errors import D2ED2QError, StorageError
from d2ed2q.files import atomic_path
from d2ed2q.report import as_bytes, overlay, uncertainty_map
from d2ed2q.serve.inputs import Input
from d2ed2q.serve.model import RESEARCH

__all__ = ["MEDIA_TYPES", "Kept", "OutdatedError", "result_names"]

MEDIA_TYPES = {".png": "image/png", ".json": "application/json", ".dcm": "application/dicom"}
_MAPS = ("mask", "probability", "doubt", "learners")
_NAMES = ("mask.png", "overlay.png", "probability.png", "doubt.png", "image.png", "summary.json")


def result_names(learners: int, dicom: bool) -> tuple[str, ...]:
    """Names of all results of an image.

    Args:
        learners: number K of the model's base learners.
        dicom: whether the image came as DICOM.
    """
    opinions = tuple(f"learner-{name}.png" for name in learner_names(learners))
    return (*_NAMES, *opinions, *(("segmentation.dcm", "overlay.dcm") if dicom else ()))


class OutdatedError(D2ED2QError):
    """The results are of another model than the node has now, and must not be given out as this one's."""


@dataclass(frozen=True, eq=False)
class Kept:
    """The outcome of a job.

    Attributes:
        mask: uint8 ``H×W``, class numbers.
        probability: uint8 ``C×H×W``, of the prediction.
        doubt: uint8 ``H×W``, entropy of the learners' mean.
        learners: uint8 ``(K+1)×H×W``, every learner's foreground.
        summary: numbers, for machines.
    """

    mask: np.ndarray
    probability: np.ndarray
    doubt: np.ndarray
    learners: np.ndarray
    summary: Mapping[str, Any]

    @classmethod
    def of(cls, prediction: Prediction, summary: Mapping[str, Any]) -> Kept:
        """Keeps a prediction."""
        binary = len(prediction.probability) == 1
        foreground = prediction.learners[:, 0] if binary else 1 - prediction.learners[:, 0]
        return cls(
            prediction.mask.astype(np.uint8),
            as_bytes(prediction.probability),
            as_bytes(prediction.uncertainty),
            as_bytes(foreground),
            summary,
        )

    def save(self, path: Path) -> None:
        """Writes the file, atomically.

        Raises:
            StorageError: it could not be written.
        """
        with (
            atomic_path(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as f,
        ):
            for name in ("mask", "probability", "doubt", "learners"):
                buffer = io.BytesIO()
                np.save(buffer, getattr(self, name), allow_pickle=False)
                f.writestr(name, buffer.getbuffer())
            f.writestr("summary", json.dumps(dict(self.summary)))

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Reads the file.

        Raises:
            StorageError: it is missing or damaged.
        """
        try:
            with zipfile.ZipFile(path) as file:
                maps = {name: np.load(io.BytesIO(file.read(name)), allow_pickle=False) for name in _MAPS}
                return cls(**maps, summary=json.loads(file.read("summary")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise StorageError(
                f"the results in {path} are missing or damaged ({error}); send the image again"
            ) from error

    def render(
        self,
        name: str,
        given: Input,
        manifest: Manifest,
        sha256: str,
        segmentation: Literal["binary", "fractional"] = "binary",
        tta: str | None = None,
        made: datetime | None = None,
    ) -> bytes:
        """One result, by its name.

        Args:
            name: of :func:`result_names`.
            given: the image.
            manifest: of the model.
            sha256: of the model.
            segmentation: kind of DICOM segmentation.
            tta: test-time augmentation that was asked for; None is the model's own.
            made: when the results were made; None is now.

        Raises:
            DataError: of a DICOM image, it lacks what its results need.
            KeyError: there is no such result.
            OutdatedError: they are of another model.
        """
        if self.summary.get("model_sha256") != sha256:
            raise OutdatedError("these results are of another model than this node has now; send the image again")
        learners = [f"learner-{learner}.png" for learner in learner_names(len(self.learners) - 1)]
        makers: dict[str, Callable[[], bytes]] = {
            "mask.png": lambda: self._png(self.mask * (255 if len(self.probability) == 1 else 1)),
            "overlay.png": lambda: self._png(overlay(given.shown, self.mask > 0)),
            "probability.png": lambda: self._png(self._foreground()),
            "doubt.png": lambda: self._png(uncertainty_map(self.doubt.astype(np.float32) / 255)),
            "image.png": lambda: self._png(given.shown),
            "summary.json": lambda: json.dumps(dict(self.summary), indent=1).encode(),
            **{file: (lambda i=i: self._png(self.learners[i])) for i, file in enumerate(learners)},  # type: ignore[misc]
        }
        if given.dicom is not None:
            source, probability = given.dicom, self.probability.astype(np.float32) / 255
            makers["segmentation.dcm"] = lambda: encoded(
                dicom_segmentation(source, self.mask, probability, manifest, sha256, segmentation, tta, made)
            )
            makers["overlay.dcm"] = lambda: encoded(
                dicom_overlay(source, overlay(given.shown, self.mask > 0), manifest, sha256, tta)
            )
        return makers[name]()

    def _foreground(self) -> np.ndarray:
        foreground: np.ndarray = self.probability[0] if len(self.probability) == 1 else 255 - self.probability[0]
        return foreground

    def _png(self, values: np.ndarray) -> bytes:
        """A PNG file that says of itself what it is, wherever it is copied to."""
        said = PngInfo()
        said.add_text("Comment", RESEARCH)
        said.add_text("Model-SHA256", str(self.summary.get("model_sha256", "")))
        said.add_text("Refused", "yes" if self.summary.get("refused") else "no")
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format="PNG", compress_level=1, pnginfo=said)
        return buffer.getvalue()
