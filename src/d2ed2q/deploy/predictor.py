"""From one file to masks: the same steps before and after the graph, whichever engine runs it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from d2ed2q.deploy.bundle import Bundle, read_bundle
from d2ed2q.deploy.dihedral import AUGMENTATIONS, averaged
from d2ed2q.deploy.engines import Engine, first_line, make_engine
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.deploy.prediction import Prediction, make_prediction
from d2ed2q.deploy.resample import resize_bilinear
from d2ed2q.deploy.tiling import in_windows
from d2ed2q.errors import BundleError, ConfigError, DataError

__all__ = ["Predictor", "SelfTest", "as_input", "padded"]

_WHOLE = 1536 * 1536  # pixels that are taken in one piece where nothing else is asked for
_WINDOW = 1024
TOLERANCE = 0.06
"""How far a probability of the sample may be from the stored one: int8 steps fall differently on other processors."""
_MEAN_TOLERANCE = 0.006


class SelfTest:
    """What a predictor gave for the sample in its bundle.

    Attributes:
        largest: largest difference of any probability from the stored one.
        mean: mean difference.
        passed: whether both are within tolerance.
    """

    def __init__(self, found: np.ndarray, expected: np.ndarray) -> None:
        difference = np.abs(found - expected)
        self.largest = float(difference.max())
        self.mean = float(difference.mean())
        self.passed = bool(self.largest <= TOLERANCE and self.mean <= _MEAN_TOLERANCE)


class Predictor:
    """Runs the model of a bundle on images of any size.

    Args:
        bundle: a bundle, or the path of one.
        engine: ``openvino``, ``onnxruntime``, ``torch``, or ``auto`` for the first of these that is installed.
        threads: cores to use; None takes all.
        streams: images that are computed at the same time, when called from as many threads.

    Raises:
        BundleError: the file is no sound bundle.
        MissingExtraError: no engine is installed.

    Examples:
        >>> from d2ed2q import Predictor, read_image  # doctest: +SKIP
        >>> Predictor("model.d2q")(read_image("photo.jpg")).mask.mean()  # doctest: +SKIP
        0.12
    """

    def __init__(
        self, bundle: Bundle | Path | str, engine: str = "auto", threads: int | None = None, streams: int = 1
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
        self.manifest = self.bundle.manifest
        if threads is not None and not 1 <= threads <= 1024:
            raise ConfigError(f"threads must be a number from 1 to 1024, got {threads}")
        self.engine: Engine = make_engine(engine, self.bundle.model, threads or os.cpu_count(), streams)

    def __call__(
        self, image: np.ndarray, tta: str | None = None, window: int | None = None, region: np.ndarray | None = None
    ) -> Prediction:
        """Segments one image.

        Args:
            image: uint8 ``H×W×C``.
            tta: test-time augmentation ``none``, ``flips`` or ``dihedral``; None as the threshold was chosen with.
            window: height and width of sliding windows; None takes images up to 2.4 million pixels whole and larger
                ones in windows of 1024.
            region: bool ``H×W``, what counts; None follows the model's own rule.

        Raises:
            DataError: the image is not such an array, has another number of channels than the model takes, or
                is too large for the memory.
            ConfigError: an unknown augmentation, or windows smaller than the model can take.
        """
        learners = self.probabilities(image, tta, window)
        output = self.manifest.output
        if region is None and output.region == "field_of_view":
            from d2ed2q.data import field_of_view

            region = field_of_view(image)
        threshold = output.thresholds[output.prediction]
        return make_prediction(learners, output.prediction, threshold, region, output.temperature)

    def probabilities(self, image: np.ndarray, tta: str | None = None, window: int | None = None) -> np.ndarray:
        """Probabilities of every learner, not calibrated.

        Args:
            image: as for a call.
            tta: as for a call.
            window: as for a call.

        Returns:
            np.ndarray: float32 ``(K+1)×C×H×W``, the meta learner first.
        """
        given, output = self.manifest.input, self.manifest.output
        tta = output.tta if tta is None else tta
        if tta not in AUGMENTATIONS:
            raise ConfigError(f"unknown test-time augmentation {tta!r}: choose {', '.join(AUGMENTATIONS)}")
        if window is not None and window < given.minimum:
            raise ConfigError(f"windows must be at least {given.minimum} pixels for this model, got {window}")
        if window is not None and given.resize is not None:
            raise ConfigError(f"the model resizes whole images to {given.resize}; leave the windows out")
        x = as_input(image, given.channels)
        size = x.shape[-2:]
        if given.resize is not None:
            learners = averaged(self.raw, resize_bilinear(x, given.resize, antialias=True), tta)
            learners = np.clip(resize_bilinear(learners, size), 0, 1)
        elif window is None and size[0] * size[1] <= _WHOLE:
            learners = averaged(self.raw, x, tta)
        else:
            learners = in_windows(lambda part: averaged(self.raw, part, tta), x, window or _WINDOW)
        return learners

    def raw(self, x: np.ndarray) -> np.ndarray:
        """What the graph gives.

        Args:
            x: float32 ``C×H×W`` in [0, 1], of any size; padded for the graph, and cropped again.

        Returns:
            np.ndarray: float32 ``(K+1)×C×H×W``.

        Raises:
            BundleError: the graph gives anything else.
        """
        height, width = x.shape[-2:]
        given = padded(x, self.manifest.input)[None]
        try:
            result = self.engine.run(given)
        except MemoryError as error:
            raise _too_large(height, width) from error
        except Exception as error:
            if any(word in str(error).lower() for word in ("alloc", "memory")):
                raise _too_large(height, width) from error
            raise BundleError(
                f"{self.bundle.path}: its graph cannot be run in {self.engine.name} on {height}×{width} pixels: "
                f"{first_line(error)}"
            ) from error
        output = self.manifest.output
        if result.shape == (output.learners + 1, 1, output.channels, *given.shape[-2:]):
            result = result[:, 0, :, :height, :width]
        else:
            raise BundleError(
                f"{self.bundle.path}: its graph gives {result.shape}, not what its manifest says; export it again"
            )
        return result

    def self_test(self) -> SelfTest:
        """Runs the sample image in the bundle, and compares with what is stored for it."""
        image, expected = self.bundle.sample
        return SelfTest(self.raw(as_input(image, self.manifest.input.channels)), expected)


def _too_large(height: int, width: int) -> DataError:
    return DataError(
        f"{height}×{width} pixels at once do not fit into the memory; cut the image into windows (--window 1024)"
    )


def padded(x: np.ndarray, given: InputSpec) -> np.ndarray:
    """Brings height and width to what the graph takes, by repeating the last row and column.

    Args:
        x: float32 ``C×H×W``.
        given: what the graph takes.
    """
    wanted = (max(given.minimum, -(-extent // given.stride) * given.stride) for extent in x.shape[-2:])
    padding = [(0, 0), *((0, want - extent) for want, extent in zip(wanted, x.shape[-2:], strict=True))]
    return np.ascontiguousarray(np.pad(x, padding, mode="edge") if padding[1][1] or padding[2][1] else x)


def as_input(image: np.ndarray, channels: int) -> np.ndarray:
    """Checks an image and scales it to [0, 1].

    Args:
        image: uint8 ``H×W×C``; a grey one is repeated for a model of three channels.
        channels: that the model takes.

    Returns:
        np.ndarray: float32 ``channels×H×W``.

    Raises:
        DataError: the image is not such an array, or has another number of channels.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise DataError(f"an image is uint8 of shape H×W×C, not {image.dtype} of shape {image.shape}")
    if image.shape[-1] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=-1)  # a grey photograph shown in colour is still that photograph
    if image.shape[-1] != channels:
        raise DataError(f"the model takes images of {channels} channels, this one has {image.shape[-1]}")
    scaled: np.ndarray = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return scaled
