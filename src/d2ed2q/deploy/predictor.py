"""From one file to masks: the same steps before and after the graph, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Union

import numpy as np

from d2ed2q.data.volumes import Volume
from d2ed2q.deploy.bundle import Bundle, read_bundle
from d2ed2q.deploy.dihedral import AUGMENTATIONS
from d2ed2q.deploy.engines import Engine, make_engine
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.deploy.pipeline import DEFAULT_WINDOW, at_own_resolution
from d2ed2q.deploy.prediction import Prediction, make_prediction
from d2ed2q.errors import BundleError, ConfigError, DataError, first_line, out_of_memory
from d2ed2q.limits import usable_cores

__all__ = ["Predictor", "SelfTest", "as_input", "byte_input", "padded"]

Image = Union[np.ndarray, Volume]  # noqa: UP007  # at run time, Python 3.10 too

# Int8 steps fall differently on other processors and in other engines: a pixel at the edge of one may change by half
# while masks stay as good (benchmarks/engines.py). What is broken is wrong in many pixels, or on average.
_FAR, _FAR_SHARE = 0.1, 0.05
_MEAN, _MEAN_SHARE = 0.006, 0.08


class SelfTest:
    """What a predictor gave for the sample in its bundle.

    Attributes:
        largest: largest difference of any probability from the stored one.
        mean: mean difference.
        far: share of the probabilities that are more than 0.1 from the stored one.
        passed: whether that share is at most 5 %, and the mean at most 8 % of the stored ones' standard deviation (or
            0.006, if that is more).
    """

    def __init__(self, found: np.ndarray, expected: np.ndarray) -> None:
        difference = np.abs(found - expected)
        self.largest = float(difference.max())
        self.mean = float(difference.mean())
        self.far = float((difference > _FAR).mean())
        allowed = max(_MEAN, _MEAN_SHARE * float(expected.std()))
        self.passed = bool(self.mean <= allowed and self.far <= _FAR_SHARE)


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
        self.engine: Engine = make_engine(engine, self.bundle.model, threads or usable_cores(), streams)

    def __call__(
        self,
        image: Image,
        tta: str | None = None,
        window: int | None = None,
        region: np.ndarray | None = None,
        spacing: Sequence[float] | None = None,
    ) -> Prediction:
        """Segments one image.

        Args:
            image: a picture ``H×W×C``, uint8 (any numbers for a model that was trained on others), or a volume of
                :func:`~d2ed2q.data.read_volume`.
            tta: test-time augmentation ``none``, ``flips`` or ``dihedral``; None as the threshold was chosen with.
            window: extent of sliding windows along every axis; None takes images whole, and large ones in windows.
            region: bool, of the spatial shape, what counts; None follows the model's own rule.
            spacing: of a picture, millimetres per pixel along height and width, where a file tells them (DICOM); a
                volume brings its own.

        Raises:
            DataError: the image is no such array or volume, has another number of channels than the model takes, no
                spacing where the model needs one, or is too large for the memory.
            ConfigError: an unknown augmentation, or windows smaller than the model can take.
        """
        x, own = as_input(image, self.manifest.input)
        if region is None and self.manifest.output.region == "field_of_view" and not isinstance(image, np.ndarray):
            region = np.ones(x.shape[1:], np.bool_)  # a file of volumes holds no photograph
        return self.scaled_prediction(x, spacing if own is None else own, tta, window, region)

    def scaled_prediction(
        self,
        x: np.ndarray,
        spacing: Sequence[float] | None,
        tta: str | None = None,
        window: int | None = None,
        region: np.ndarray | None = None,
    ) -> Prediction:
        """As a call, of an image that is float32 ``C×*spatial`` in [0, 1] already."""
        learners, output = self.scaled_probabilities(x, spacing, tta, window), self.manifest.output
        if region is None and output.region == "field_of_view":
            from d2ed2q.data import region_of_input

            region = region_of_input(x)  # as it was found in training
        threshold = output.thresholds[output.prediction]
        return make_prediction(learners, output.prediction, threshold, region, output.temperature, output.rule)

    def probabilities(
        self,
        image: Image,
        tta: str | None = None,
        window: int | None = None,
        spacing: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Probabilities of every learner, not calibrated.

        Args:
            image: as for a call.
            tta: as for a call.
            window: as for a call.
            spacing: as for a call.

        Returns:
            np.ndarray: float32 ``(K+1)×C×*spatial``, the meta learner first.
        """
        x, own = as_input(image, self.manifest.input)
        return self.scaled_probabilities(x, spacing if own is None else own, tta, window)

    def scaled_probabilities(
        self,
        x: np.ndarray,
        spacing: Sequence[float] | None,
        tta: str | None = None,
        window: int | None = None,
    ) -> np.ndarray:
        """As :meth:`probabilities`, of an image that is float32 ``C×*spatial`` in [0, 1] already."""
        given, output = self.manifest.input, self.manifest.output
        tta = output.tta if tta is None else tta
        if tta not in AUGMENTATIONS:
            raise ConfigError(f"unknown test-time augmentation {tta!r}: choose {', '.join(AUGMENTATIONS)}")
        windows = given.windows(window)
        size = given.resolution.size(x.shape[1:], spacing)
        return at_own_resolution(self.raw, x, size, tta, windows, given.window, given.standardize)

    def raw(self, x: np.ndarray) -> np.ndarray:
        """What the graph gives.

        Args:
            x: float32 ``C×*spatial`` in [0, 1], of any size; padded for the graph, and cropped again.

        Returns:
            np.ndarray: float32 ``(K+1)×C×*spatial``.

        Raises:
            BundleError: the graph gives anything else.
        """
        extents = "×".join(map(str, x.shape[1:]))
        given = padded(x, self.manifest.input)[None]
        try:
            result = self.engine.run(given)
        except Exception as error:
            if out_of_memory(error):
                raise _too_large(extents, x.ndim - 1) from error
            raise BundleError(
                f"{self.bundle.path}: its graph cannot be run in {self.engine.name} on {extents} pixels: "
                f"{first_line(error)}"
            ) from error
        output = self.manifest.output
        if result.shape == (output.learners + 1, 1, output.channels, *given.shape[2:]):
            cropped = (slice(None), slice(None), *(slice(extent) for extent in x.shape[1:]))
            result = result[:, 0][cropped]
        else:
            raise BundleError(
                f"{self.bundle.path}: its graph gives {result.shape}, not what its manifest says; export it again"
            )
        return result

    def self_test(self) -> SelfTest:
        """Runs the sample image in the bundle, and compares with what is stored for it."""
        image, expected = self.bundle.sample
        return SelfTest(self.raw(byte_input(image, self.manifest.input.channels)), expected)


def _too_large(extents: str, dims: int) -> DataError:
    return DataError(
        f"{extents} pixels at once do not fit into the memory; cut the image into windows "
        f"(--window {DEFAULT_WINDOW[dims]})"
    )


def padded(x: np.ndarray, given: InputSpec) -> np.ndarray:
    """Brings every extent to what the graph takes, by repeating the last row, column or slice.

    Args:
        x: float32 ``C×*spatial``.
        given: what the graph takes.
    """
    wanted = given.taken(x.shape[1:])
    padding = [(0, 0), *((0, want - extent) for want, extent in zip(wanted, x.shape[1:], strict=True))]
    return np.ascontiguousarray(np.pad(x, padding, mode="edge") if any(after for _, after in padding) else x)


def as_input(image: Image, given: InputSpec) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Checks an image and scales it to [0, 1].

    Args:
        image: a picture ``H×W×C``, or a volume; a grey one of 8 bits is repeated for a model of three channels.
        given: what the model takes.

    Returns:
        tuple: float32 ``channels×*spatial``, and the spacing in millimetres where it is known.

    Raises:
        DataError: the image is no picture or volume as the model takes them, or has another number of channels.
    """
    if isinstance(image, Volume):
        values, spacing, name = image.values, image.spacing, str(image.path)
    elif given.intensity.rule == "byte" and given.dims == 2 and image.ndim != 4:
        return byte_input(image, given.channels), None
    else:
        if image.ndim != 3 or 0 in image.shape:
            raise DataError(f"a picture has the shape H×W×C, not {image.shape}")
        values, spacing, name = image.transpose(2, 0, 1), None, "the picture"
    if values.ndim - 1 != given.dims:
        raise DataError(f"{name} has {values.ndim - 1} dimensions, but the model takes images of {given.dims}")
    if len(values) != given.channels:
        raise DataError(f"the model takes images of {given.channels} channels, {name} has {len(values)}")
    if given.intensity.rule == "byte" and values.dtype != np.uint8:
        raise DataError(f"{name} holds {values.dtype} numbers, but the model was trained on pictures of 8 bits")
    return np.ascontiguousarray(given.intensity.scaled(values)), spacing


def byte_input(image: np.ndarray, channels: int) -> np.ndarray:
    """Scales bytes to [0, 1].

    Args:
        image: uint8 ``H×W×C`` (or ``D×H×W×C``); a grey one is repeated for a model of three channels.
        channels: that the model takes.

    Raises:
        DataError: the image is not such an array, or has another number of channels.
    """
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or 0 in image.shape:
        raise DataError(f"an image is uint8 of shape H×W×C, not {image.dtype} of shape {image.shape}")
    if image.shape[-1] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=-1)  # a grey photograph shown in colour is still that photograph
    if image.shape[-1] != channels:
        raise DataError(f"the model takes images of {channels} channels, this one has {image.shape[-1]}")
    scaled: np.ndarray = np.ascontiguousarray(np.moveaxis(image, -1, 0)).astype(np.float32) / np.float32(255)
    return scaled
