"""The model of a node: one bundle, one engine, and what it says of an image, with its picture and its numbers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ed2q.deploy import Bundle, Prediction, Predictor
from d2ed2q.errors import BundleError

__all__ = ["RESEARCH", "Model", "Outcome"]

RESEARCH = "research use only; not a medical device"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the model says of one image.

    Attributes:
        prediction: all of it.
        refused: whether the doubt is above the node's bound.
        summary: numbers for machines: no pixels, and nothing of a patient.
    """

    prediction: Prediction
    refused: bool
    summary: Mapping[str, Any]


class Model:
    """A bundle, ready to be asked.

    Args:
        bundle: read and checked.
        engine: that runs it.
        threads: cores; None takes all.
        refuse: doubt above which an image is refused; None takes the bundle's own bound, if it has one.

    Raises:
        BundleError: the bundle's self-test fails on this machine.
        MissingExtraError: no engine is installed.
    """

    def __init__(
        self, bundle: Bundle, engine: str = "auto", threads: int | None = None, refuse: float | None = None
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        own = self.manifest.refusal
        self.refuse = refuse if refuse is not None or own is None else own.doubt
        self.predictor = Predictor(bundle, engine, threads)
        self._lock = threading.Lock()
        self._sound = True
        test = self.predictor.self_test()
        if not test.passed:
            raise BundleError(
                f"{bundle.path} gives other results in {self.predictor.engine.name} on this machine than those stored "
                f"with it (by {test.mean:.3f} on average, {test.far:.1%} of them by over 0.1); try another engine, or "
                f"export it again here"
            )

    @property
    def sound(self) -> bool:
        """Whether the engine answered when it was last asked."""
        return self._sound

    def recovered(self) -> bool:
        """Asks an engine that failed for the bundle's sample, and says whether it answers again."""
        try:
            with self._lock:
                self._sound = self.predictor.self_test().passed
        except Exception:  # whatever it is, the engine does not answer, and who asks must not end of it
            self._sound = False
        return self._sound

    def segment(self, image: np.ndarray, tta: str | None = None, spacing: Sequence[float] | None = None) -> Outcome:
        """Segments one image; one at a time, because the engine takes all cores.

        Args:
            image: as :class:`~d2ed2q.deploy.Predictor` takes it.
            tta: test-time augmentation; None as the model was tuned with.
            spacing: millimetres per pixel along height and width, where they are known.

        Raises:
            D2ED2QError: the image is not such as the model takes, or the engine failed.
        """
        start = time.perf_counter()
        try:
            with self._lock:
                prediction = self.predictor(image, tta, spacing=spacing)
        except BundleError:
            self._sound = False
            raise
        self._sound = True
        return self._outcome(prediction, time.perf_counter() - start)

    def scaled(self, image: np.ndarray, tta: str = "none") -> Prediction:
        """Segments an image that is scaled already.

        Args:
            image: float32 ``C×H×W`` in [0, 1].
            tta: test-time augmentation.

        Raises:
            D2ED2QError: as :meth:`segment`.
        """
        try:
            with self._lock:
                prediction = self.predictor.scaled_prediction(image, None, tta)
        except BundleError:
            self._sound = False
            raise
        self._sound = True
        return prediction

    def refuses(self, prediction: Prediction) -> bool:
        """Whether a prediction is to be doubted more than the bound."""
        return self.refuse is not None and prediction.doubt > self.refuse

    def _outcome(self, prediction: Prediction, seconds: float) -> Outcome:
        names = self.manifest.output.classes
        counts = np.bincount(prediction.mask.ravel(), minlength=len(names))
        refused = self.refuses(prediction)
        summary = {
            "model": self.manifest.name,
            "model_sha256": self.bundle.sha256,
            "size": list(prediction.mask.shape),
            "pixels": {name: int(count) for name, count in zip(names, counts, strict=True)},
            "doubt": round(prediction.doubt, 4),
            "refused": refused,
            "seconds": round(seconds, 4),
            "note": RESEARCH,
        }
        if prediction.objects is not None:
            summary["objects"] = int(prediction.objects.max())
        return Outcome(prediction, refused, summary)
