"""Segment images: mask, probability, uncertainty and overlay of each."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from d2ed2q.data import field_of_view, list_images, read_image, write_png
from d2ed2q.deploy import Prediction, Predictor, is_bundle, make_prediction, read_bundle
from d2ed2q.errors import ConfigError, DataError, RunFolderError
from d2ed2q.files import append_line, sha256_of, storage_error
from d2ed2q.recipes.settings import PredictSettings
from d2ed2q.report import overlay, uncertainty_map

if TYPE_CHECKING:  # bundles run where PyTorch is not installed
    from d2ed2q.ensemble import DeepEnsemble

__all__ = ["LOG", "Prediction", "PredictionSummary", "predict", "predict_image"]

LOG = "predictions.jsonl"
"""What was done in an output folder: the first line says with what model, then one line an image."""

_KINDS = ("mask", "probability", "uncertainty", "overlay")
_KEYS = frozenset({"image", "path", "state", "mask"})
Segment = Callable[[np.ndarray], Prediction]


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """What one call of :func:`predict` did.

    Attributes:
        masks: the masks of all inputs that could be segmented, in their order.
        failed: of every input that could not be, why.
        skipped: number of inputs that an earlier call had segmented.
        seconds: taken.
        images: a record of every image: ``image``, ``mask``, ``classes`` (pixels of each class), ``uncertainty`` (mean)
            and ``seconds``, or ``image`` and ``error``.
    """

    masks: list[Path]
    failed: dict[Path, str]
    skipped: int
    seconds: float
    images: list[dict[str, Any]]


def predict_image(
    ensemble: DeepEnsemble,
    image: np.ndarray,
    resize: tuple[int, int] | None = None,
    tta: str = "none",
    region: np.ndarray | None = None,
) -> Prediction:
    """Segments one image with a trained ensemble in PyTorch.

    Args:
        ensemble: the model.
        image: uint8 ``H×W×C``.
        resize: height and width the network sees, or None for the image's own.
        tta: test-time augmentation: ``none``, ``flips`` or ``dihedral``.
        region: bool ``H×W``; what lies outside is background with certainty. None counts every pixel.

    Raises:
        DataError: the image has another number of channels than the model takes.
    """
    import torch

    from d2ed2q.deploy.predictor import as_input
    from d2ed2q.recipes.inference import predict_probabilities

    tensor = torch.from_numpy(as_input(image, ensemble.meta.in_channels))
    learners = predict_probabilities(ensemble, tensor, resize, tta).numpy()
    view = ensemble.prediction_name
    return make_prediction(learners, view, ensemble.threshold_of(view), region)


def predict(settings: PredictSettings) -> PredictionSummary:
    """Segments every input and writes its results into the output folder.

    For ``photo.jpg`` these are ``photo_mask.png`` (0 and 255; class numbers for several classes),
    ``photo_probability.png`` (0…255), ``photo_uncertainty.png`` (entropy, dark is certain) and ``photo_overlay.png``.
    Outside the field of view of a model that was trained with such regions, everything is background.

    An image that cannot be read is noted and left out. The same call again goes on where it stopped: images that are
    done and have not changed are not segmented again.

    Returns:
        PredictionSummary: what was done.

    Raises:
        DataError: an input is missing, or two would write results of the same name.
        RunFolderError: the run has not finished, or the output folder holds other things.
        BundleError: the bundle is not sound.
    """
    start = time.perf_counter()
    files = _input_files(settings.inputs)
    segment, binary, identity = _open(settings)
    header = {"d2ed2q": 1, **identity, "tta": settings.tta, "window": settings.window}
    done = _done(settings, header, files)
    records: list[dict[str, Any]] = []
    skipped = 0
    console = Console(stderr=True)
    for file in track(files, "predicting", console=console, disable=not console.is_terminal, transient=True):
        state = _state(file)
        earlier = done.get(str(file.resolve()))
        if earlier is not None and earlier["state"] == state and _complete(settings.out, file.stem):
            records.append(earlier)
            skipped += 1
            continue
        record = {
            "image": str(file),
            "path": str(file.resolve()),
            "state": state,
            **_one(file, settings.out, segment, binary),
        }
        append_line(settings.out / LOG, json.dumps(record))
        records.append(record)
        if "error" in record:
            console.print(f"skipped: {record['error']}", markup=False, highlight=False, soft_wrap=True)
    return PredictionSummary(
        masks=[settings.out / record["mask"] for record in records if "mask" in record],
        failed={Path(record["image"]): record["error"] for record in records if "error" in record},
        skipped=skipped,
        seconds=time.perf_counter() - start,
        images=[{key: value for key, value in record.items() if key not in ("path", "state")} for record in records],
    )


def _open(settings: PredictSettings) -> tuple[Segment, bool, dict[str, str]]:
    """How to segment an image, whether the task is binary, and which weights do it."""
    if not is_bundle(settings.model):
        if settings.window is not None or settings.engine not in ("auto", "torch"):
            raise ConfigError("a run folder is predicted in PyTorch, whole images at once; export it for all else")
        return _open_run(settings)
    bundle = read_bundle(settings.model)
    if settings.full_precision:
        raise ConfigError(f"{settings.model} is a bundle: it has no full-precision weights; pass its run folder")
    predictor = Predictor(bundle, settings.engine, settings.threads)

    def segment(image: np.ndarray) -> Prediction:
        return predictor(image, settings.tta, settings.window)

    return segment, bundle.manifest.output.channels == 1, {"model": bundle.sha256, "engine": predictor.engine.name}


def _open_run(settings: PredictSettings) -> tuple[Segment, bool, dict[str, str]]:
    import torch

    from d2ed2q.recipes.run_folder import RunFolder

    torch.set_flush_denormal(True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    run = RunFolder(settings.model)
    card = run.read_card()
    ensemble = run.load(settings.full_precision)
    tta = settings.tta or card.tta

    def segment(image: np.ndarray) -> Prediction:
        region = field_of_view(image) if card.region == "field_of_view" else None
        return predict_image(ensemble, image, card.resize, tta, region)

    weights = run.full_precision if settings.full_precision else run.model
    return segment, card.n_outputs == 1, {"model": sha256_of(weights), "engine": "torch"}


def _input_files(inputs: Sequence[Path]) -> list[Path]:
    if not inputs:
        raise ConfigError("predict needs at least one image, or a folder of images")
    files: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            found = list(list_images(entry))
            if not found:
                raise DataError(f"there is no image in {entry}; PNG, JPEG, TIFF, BMP and GIF are read")
        elif entry.is_file():
            found = [entry]
        else:
            matches = glob.glob(str(entry), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
            found = [path for path in map(Path, sorted(matches)) if path.is_file()]
            if not found:
                raise DataError(f"there is no file or folder {entry}, and nothing that matches it as a pattern")
        files += found
    taken: dict[str, Path] = {}
    for file in files:
        other = taken.setdefault(file.stem, file)
        if other != file:
            raise DataError(f"{other} and {file} would write results of the same name; predict them into two folders")
    return list(taken.values())


def _state(file: Path) -> list[int]:
    """Changes when the file does."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _complete(out: Path, stem: str) -> bool:
    return all((out / f"{stem}_{kind}.png").is_file() for kind in _KINDS)


def _done(settings: PredictSettings, header: dict[str, Any], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What an earlier call with the same model and settings has segmented; begins the log where there is none."""
    out, log = settings.out, settings.out / LOG
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; choose a folder with --out")
    for file in files:
        if file.resolve().parent == out.resolve():
            raise DataError(f"{file} lies in the output folder, where results would replace it; choose another --out")
    if log.is_file() and not settings.overwrite:
        rows = _rows(log)
        if rows and rows[0] == header:
            latest = {row["mask"]: row for row in rows[1:] if "mask" in row}
            for file in files:
                owner = latest.get(f"{file.stem}_mask.png")
                if owner is not None and owner["path"] != str(file.resolve()):
                    raise DataError(
                        f"{out} holds the results of {owner['path']}, and those of {file} would have the same names; "
                        f"choose another folder with --out, or pass --overwrite"
                    )
            return {row["path"]: row for row in latest.values()}
        raise RunFolderError(
            f"{out} holds predictions of another model or with other settings; pass --overwrite to replace them, "
            f"or choose another folder with --out"
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
        if not all(set(row) >= _KEYS for row in rows[1:] if "mask" in row):
            raise ValueError("a line lacks a key")
        return rows
    except ValueError as error:
        raise RunFolderError(f"{log} is damaged ({error}); remove it, or choose another folder with --out") from error


def _one(file: Path, out: Path, segment: Segment, binary: bool) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        image = read_image(file)
        prediction = segment(image)
    except (DataError, MemoryError) as error:
        text = str(error) or "too large for the memory; cut it into windows (--window 1024)"
        return {"error": text if str(file) in text else f"{file}: {text}"}
    mask = _write(out, file.stem, image, prediction, binary)
    return {
        "mask": mask.name,
        "classes": np.bincount(prediction.mask.ravel()).tolist(),
        "uncertainty": round(float(prediction.uncertainty.mean()), 6),
        "seconds": round(time.perf_counter() - start, 4),
    }


def _write(folder: Path, stem: str, image: np.ndarray, prediction: Prediction, binary: bool) -> Path:
    foreground = prediction.probability[0] if binary else 1 - prediction.probability[0]
    shown = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    write_png(folder / f"{stem}_probability.png", _to_byte(foreground))
    write_png(folder / f"{stem}_uncertainty.png", uncertainty_map(prediction.uncertainty))
    write_png(folder / f"{stem}_overlay.png", overlay(shown, prediction.mask > 0))
    path = folder / f"{stem}_mask.png"
    write_png(path, prediction.mask.astype(np.uint8) * (255 if binary else 1))  # last: where it is, everything is
    return path


def _to_byte(values: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return scaled
