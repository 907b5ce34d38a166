"""Segment images: mask, probability, uncertainty and overlay of each."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from d2ed2q.data import Volume, region_of_input
from d2ed2q.data.dicom import DicomImage
from d2ed2q.deploy import Prediction, Predictor, is_bundle, make_prediction, model_path, read_bundle
from d2ed2q.deploy.cleaning import MaskRule
from d2ed2q.deploy.manifest import InputSpec, Manifest
from d2ed2q.deploy.objects import ObjectRule
from d2ed2q.errors import ConfigError, DataError, RunFolderError, out_of_memory
from d2ed2q.files import append_line, atomic_path, sha256_of, storage_error
from d2ed2q.recipes.predict_files import Input, find_inputs, is_complete, remove_results, write_results
from d2ed2q.recipes.settings import PredictSettings

if TYPE_CHECKING:  # bundles run where PyTorch is not installed
    from d2ed2q.ensemble import DeepEnsemble

__all__ = ["LOG", "Prediction", "PredictionSummary", "predict", "predict_image"]

LOG = "predictions.jsonl"
"""What was done in an output folder: the first line says with what model, then one line an image."""

_KEYS = frozenset({"image", "path", "state"})
_MOST_OBJECTS = 65535
Segment = Callable[[np.ndarray | Volume, tuple[float, float] | None], Prediction]


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """What one call of :func:`predict` did.

    Attributes:
        masks: the masks of all inputs that could be segmented, in their order.
        failed: of every input that could not be, why.
        refused: of every input that was refused, its doubt.
        skipped: number of inputs that an earlier call had segmented.
        seconds: taken.
        images: a record of every image: ``image``, ``mask``, ``classes`` (pixels of each class), ``uncertainty``
            (mean), ``doubt`` and ``seconds``; of a refused one ``image``, ``refused`` (true), ``doubt`` and
            ``seconds``; or ``image`` and ``error``.
    """

    masks: list[Path]
    failed: dict[Path, str]
    refused: dict[Path, float]
    skipped: int
    seconds: float
    images: list[dict[str, Any]]


def predict_image(
    ensemble: DeepEnsemble,
    image: np.ndarray | Volume,
    given: InputSpec | None = None,
    tta: str = "none",
    region: np.ndarray | None = None,
    window: Sequence[int] | None = None,
    rule: ObjectRule | MaskRule | None = None,
    spacing: Sequence[float] | None = None,
) -> Prediction:
    """Segments one image with a trained ensemble in PyTorch.

    Args:
        ensemble: the model.
        image: a picture, uint8 ``H×W×C``, or a volume of :func:`~d2ed2q.data.read_volume`.
        given: at which resolution, and from which intensities, as ``RunFolder.read_card().input_spec(ensemble)`` has
            it; None takes bytes at the image's own resolution.
        tta: test-time augmentation: ``none``, ``flips`` or ``dihedral``.
        region: bool, of the spatial shape; what lies outside is background with certainty. None counts every pixel.
        window: extents of sliding windows; None takes images whole, and large ones in windows.
        rule: which specks of the mask are filled or dropped, or how it is cut into objects, if so.
        spacing: of a picture, millimetres per pixel along height and width, where they are known.

    Raises:
        DataError: the image is no such array or volume, or has another number of channels than the model takes.
    """
    import torch

    from d2ed2q.deploy.predictor import as_input
    from d2ed2q.recipes.inference import predict_probabilities

    meta = ensemble.meta
    given = given or InputSpec(meta.in_channels, meta.stride, meta.minimum, None, 2 if meta.dims == 2 else 3)
    x, own = as_input(image, given)
    spacing = spacing if own is None else own
    learners = predict_probabilities(
        ensemble, torch.from_numpy(x), given.resolution, tta, spacing, window, given.window, given.standardize
    ).numpy()
    view = ensemble.prediction_name
    return make_prediction(learners, view, ensemble.threshold_of(view), region, rule=rule)


def predict(settings: PredictSettings) -> PredictionSummary:
    """Segments every input and writes its results into the output folder.

    For ``photo.jpg`` these are ``photo_mask.png`` (0 and 255; class numbers for several classes),
    ``photo_probability.png`` (0…255), ``photo_uncertainty.png`` (entropy, dark is certain) and ``photo_overlay.png``.
    For ``scan.nii.gz`` the first three are volumes in the grid of the scan (class numbers; foreground probability;
    entropy), and the overlay is of the slice with most foreground. A model that tells objects apart writes their
    numbers too, as ``photo_objects.png`` with 16 bits. One of several channels takes the files
    ``scan_0000.nii.gz``, ``scan_0001.nii.gz``, … as one image. Outside the field of view of a model that was trained
    with such regions, everything is background. Of a DICOM image (``.dcm``), a bundle also writes
    ``image_segmentation.dcm``, a DICOM segmentation.

    Of an image whose doubt is above the bound of ``settings.refuse`` nothing is written: no mask is better than a
    wrong one. An image that cannot be read is noted and left out. The same call again goes on where it stopped: images
    that are done and have not changed are not segmented again.

    Returns:
        PredictionSummary: what was done.

    Raises:
        DataError: an input is missing, or two would write results of the same name.
        RunFolderError: the run has not finished, or the output folder holds other things.
        BundleError: the bundle is not sound.
    """
    start = time.perf_counter()
    model = _open(settings)
    items = find_inputs(settings.inputs, model.given)
    bound = _bound(settings, model.manifest)
    header = {"d2ed2q": 1, **model.identity, "tta": settings.tta, "window": settings.window, "refuse": bound}
    done = _done(settings, header, items)
    records: list[dict[str, Any]] = []
    skipped = 0
    console = Console(stderr=True)
    for item in track(items, "predicting", console=console, disable=not console.is_terminal, transient=True):
        state = _state(item)
        earlier = done.get(str(item.file.resolve()))
        whole = earlier is not None and ("refused" in earlier or is_complete(settings.out, item, "objects" in earlier))
        if earlier is not None and earlier["state"] == state and whole:
            records.append(earlier)
            skipped += 1
            continue
        record = {
            "image": str(item.file),
            "path": str(item.file.resolve()),
            "state": state,
            **_one(item, settings.out, model, bound),
        }
        append_line(settings.out / LOG, json.dumps(record))
        records.append(record)
        if "refused" in record:
            text = f"refused: {item.file}: doubt {record['doubt']:.3f} is above {bound:.3f}; look at the image yourself"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        if "error" in record:
            console.print(f"skipped: {record['error']}", markup=False, highlight=False, soft_wrap=True)
    return PredictionSummary(
        masks=[settings.out / record["mask"] for record in records if "mask" in record],
        failed={Path(record["image"]): record["error"] for record in records if "error" in record},
        refused={Path(record["image"]): record["doubt"] for record in records if "refused" in record},
        skipped=skipped,
        seconds=time.perf_counter() - start,
        images=[{key: value for key, value in record.items() if key not in ("path", "state")} for record in records],
    )


@dataclasses.dataclass(frozen=True)
class _Model:
    """How to segment an image, what it takes, whether the task is binary, and which weights do it."""

    segment: Segment
    given: InputSpec
    binary: bool
    identity: dict[str, str]
    manifest: Manifest | None = None
    tta: str | None = None  # that was asked for

    def dicom(self, image: DicomImage, prediction: Prediction) -> bytes | None:
        """The DICOM segmentation of a DICOM image; only a bundle has what its writer has to be told."""
        if self.manifest is None:
            return None
        from d2ed2q.deploy.dicom_results import dicom_segmentation, encoded

        sha256, tta = self.identity["model"], self.tta
        return encoded(
            dicom_segmentation(image.dataset, prediction.mask, prediction.probability, self.manifest, sha256, tta=tta)
        )


def _bound(settings: PredictSettings, manifest: Manifest | None) -> float | None:
    """The doubt above which images are refused."""
    if settings.refuse != "model":
        return settings.refuse
    if manifest is None:
        raise ConfigError("a run folder brings no bound to refuse images by; export it, or give --refuse a number")
    if manifest.refusal is None:
        raise ConfigError(f"{settings.model} brings no bound to refuse images by; give --refuse a number from 0 to 1")
    return manifest.refusal.doubt


def _open(settings: PredictSettings) -> _Model:
    path = model_path(settings.model)
    if not is_bundle(path):
        if settings.engine not in ("auto", "torch"):
            raise ConfigError("a run folder is predicted in PyTorch; export it for other engines")
        return _open_run(settings)
    bundle = read_bundle(path)
    if settings.full_precision:
        raise ConfigError(f"{settings.model} is a bundle: it has no full-precision weights; pass its run folder")
    predictor = Predictor(bundle, settings.engine, settings.threads)

    def segment(image: np.ndarray | Volume, spacing: tuple[float, float] | None) -> Prediction:
        return predictor(image, settings.tta, settings.window, spacing=spacing)

    binary = bundle.manifest.output.channels == 1
    identity = {"model": bundle.sha256, "engine": predictor.engine.name}
    return _Model(segment, bundle.manifest.input, binary, identity, bundle.manifest, settings.tta)


def _open_run(settings: PredictSettings) -> _Model:
    import torch

    from d2ed2q.deploy.predictor import as_input
    from d2ed2q.recipes.run_folder import RunFolder

    torch.set_flush_denormal(True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = RunFolder(settings.model)
    card = run.read_card()
    ensemble = run.load(settings.full_precision)
    given = card.input_spec(ensemble)
    tta = settings.tta or card.tta
    window = given.windows(settings.window)

    def segment(image: np.ndarray | Volume, spacing: tuple[float, float] | None) -> Prediction:
        known = card.region == "field_of_view" and isinstance(image, np.ndarray)
        region = region_of_input(as_input(image, given)[0]) if known else None
        return predict_image(ensemble, image, given, tta, region, window, card.rule, spacing)

    weights = run.full_precision if settings.full_precision else run.model
    return _Model(segment, given, card.n_outputs == 1, {"model": sha256_of(weights), "engine": "torch"})


def _state(item: Input) -> list[int]:
    """Changes when one of the files does."""
    return [number for file in item.files for number in (file.stat().st_size, file.stat().st_mtime_ns)]


def _done(settings: PredictSettings, header: dict[str, Any], items: Sequence[Input]) -> dict[str, dict[str, Any]]:
    """What an earlier call with the same model and settings has segmented; begins the log where there is none."""
    out, log = settings.out, settings.out / LOG
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; choose a folder with --out")
    for item in items:
        if item.file.resolve().parent == out.resolve():
            raise DataError(
                f"{item.file} lies in the output folder, where results would replace it; choose another --out"
            )
    if log.is_file() and not settings.overwrite:
        rows = _rows(log)
        if rows and rows[0] == header:
            done = [row for row in rows[1:] if "error" not in row]
            latest = {row["mask"]: row for row in done if "mask" in row}
            for item in items:
                owner = latest.get(item.result("mask"))
                if owner is not None and owner["path"] != str(item.file.resolve()):
                    raise DataError(
                        f"{out} holds the results of {owner['path']}, and those of {item.file} would have the same "
                        f"names; choose another folder with --out, or pass --overwrite"
                    )
            return {row["path"]: row for row in done}
        then = rows[0] if rows else {}
        others = ", ".join(name for name, value in header.items() if then.get(name) != value)
        raise RunFolderError(
            f"{out} holds predictions of another model or with other settings ({others}); pass --overwrite to replace "
            f"them, or choose another folder with --out"
        )
    if log.is_file():
        log.unlink()
    elif out.exists() and any(out.iterdir()) and not settings.overwrite:
        raise RunFolderError(f"the output folder {out} exists; pass --overwrite, or choose another with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from error
    append_line(log, json.dumps(header))
    return {}


def _rows(log: Path) -> list[dict[str, Any]]:
    """The lines of the log; one that a kill cut short is taken back, so that the next does not run into it."""
    whole, newline, rest = log.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(log, len(whole) + len(newline))
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no JSON object")
        if not all(set(row) >= _KEYS and len(set(row) & {"mask", "refused", "error"}) == 1 for row in rows[1:]):
            raise ValueError("a line lacks a key")
        return rows
    except ValueError as error:
        raise RunFolderError(f"{log} is damaged ({error}); remove it, or choose another folder with --out") from error


def _one(item: Input, out: Path, model: _Model, bound: float | None) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        found = item.read(model.given)
        image = found.taken(model.given.intensity.rule) if isinstance(found, DicomImage) else found
        prediction = model.segment(image, found.spacing if isinstance(found, DicomImage) else None)
        if prediction.objects is not None and model.given.dims == 2 and int(prediction.objects.max()) > _MOST_OBJECTS:
            raise DataError(f"{item.file} has more than {_MOST_OBJECTS} objects, which a PNG cannot number; cut it up")
        doubt = round(prediction.doubt, 6)
        if bound is not None and doubt > bound:
            remove_results(out, item)
            return {"refused": True, "doubt": doubt, "seconds": round(time.perf_counter() - start, 4)}
        segmentation = model.dicom(found, prediction) if isinstance(found, DicomImage) else None
    except (DataError, MemoryError, RuntimeError) as error:
        if not isinstance(error, DataError) and not out_of_memory(error):
            raise
        remedy = "cut it into windows (--window)" if model.given.dims == 2 else "crop it, or predict it elsewhere"
        text = str(error) if isinstance(error, DataError) else f"too large for the memory; {remedy}"
        remove_results(out, item)  # of an earlier image or model
        return {"error": text if str(item.file) in text else f"{item.file}: {text}"}
    remove_results(out, item)  # all of them: an earlier model may have had more kinds
    if segmentation is not None:
        with atomic_path(out / item.segmentation) as temporary:
            temporary.write_bytes(segmentation)
    write_results(out, item, found.shown if isinstance(found, DicomImage) else image, prediction, model.binary)
    return {
        "mask": item.result("mask"),
        **({} if prediction.objects is None else {"objects": int(prediction.objects.max())}),
        "classes": np.bincount(prediction.mask.ravel()).tolist(),
        "uncertainty": round(float(prediction.uncertainty.mean()), 6),
        "doubt": doubt,
        "seconds": round(time.perf_counter() - start, 4),
    }
