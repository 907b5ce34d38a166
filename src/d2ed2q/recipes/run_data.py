"""The images of a run: how they are split, what is recorded of them, and how they are found again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2ed2q.data import (
    Case,
    Dataset,
    checksums,
    checksums_both,
    evenly_spread,
    open_dataset,
    split_folds,
    split_validation,
)
from d2ed2q.errors import ConfigError, DataError, RunFolderError
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["all_cases", "record_data", "recorded_data", "require_held_out", "seen_images", "split_cases"]


def split_cases(settings: TrainSettings, dataset: Dataset) -> dict[str, Sequence[Case]]:
    """Cases by what they are for: ``train``, ``validation``, ``test``, and the ``fold`` that is left out, if any."""
    splits = dict(all_cases(settings, dataset))
    if settings.training_images == "all":
        splits["train"] = (*splits["train"], *splits["validation"])
    if settings.validation_images is not None:
        splits["validation"] = evenly_spread(splits["validation"], settings.validation_images)
    return splits


def all_cases(settings: TrainSettings, dataset: Dataset) -> dict[str, Sequence[Case]]:
    """As :func:`split_cases`, with all validation cases, which none of the training cases is."""
    if settings.folds is not None and settings.fold is not None:
        pool, fold = split_folds((*dataset.train, *dataset.validation), settings.folds, settings.fold, settings.seed)
    elif dataset.validation:
        return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    else:
        pool, fold = dataset.train, ()
    training, validation = split_validation(pool, settings.validation_fraction, settings.seed)
    left_out = {"fold": fold} if fold else {}
    return {"train": training, "validation": validation, "test": dataset.test, **left_out}


def record_data(
    run: RunFolder, dataset: Dataset, splits: Mapping[str, Sequence[Case]], start: RunFolder | None
) -> None:
    """Writes ``data.json``, or compares it where a run goes on.

    Args:
        run: the folder.
        dataset: the images.
        splits: which cases are for what.
        start: a finished run on the same images whose record is taken over; None makes a new one.

    Raises:
        RunFolderError: the run was begun with other images or other splits.
    """
    record = start.read_json(start.data) if start is not None else _data_record(dataset, splits)
    record["root"] = str(dataset.root.resolve())  # elsewhere a relative one would lead to another's images
    if run.data.exists():
        begun = run.read_json(run.data)
        if any(begun.get(key) != record[key] for key in ("sha256", "splits", "classes")):
            raise RunFolderError(
                f"the images at {dataset.root}, or their patients, are not those that {run.path} was begun with; "
                f"resume with the same data"
            )
    run.write_json(run.data, record)


def _each(splits: Mapping[str, Sequence[Case]]) -> list[Case]:
    """Every case once, whatever it is for."""
    return list({case.id: case for cases in splits.values() for case in cases}.values())


def _data_record(dataset: Dataset, splits: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    whole, images = checksums_both(_each(splits))
    _require_apart(splits, images)
    return {
        "dataset": dataset.name,
        "title": dataset.title,
        "classes": list(dataset.classes),
        "splits": {name: [case.id for case in cases] for name, cases in splits.items()},
        "patients": {case.id: case.patient for cases in splits.values() for case in cases},
        "sha256": whole,
        "image_sha256": images,
    }


def _require_apart(splits: Mapping[str, Sequence[Case]], digests: Mapping[str, str]) -> None:
    """No image that chooses or scores may be one that is trained on under another name."""
    trained = {digests[case.id]: case for case in splits["train"]}
    for part, cases in splits.items():
        for case in cases:
            twin = trained.get(digests[case.id], case)
            if twin.id != case.id:
                raise DataError(
                    f"{case.image} of the {part} images is the same picture as {twin.image}, which is trained on; "
                    f"remove one of them, or give both to one patient in patients.csv"
                )


def seen_images(run: RunFolder) -> set[str]:
    """SHA-256 of the images, without their masks, that a run was trained and validated on, and its teacher.

    Raises:
        RunFolderError: nothing is recorded of them.
    """
    recorded = run.read_json(run.data)
    taught = set(run.read_json(run.teacher)["seen"]) if run.teacher.exists() else set()
    return taught | {
        recorded["image_sha256"][id] for part in ("train", "validation") for id in recorded["splits"][part]
    }


def require_held_out(settings: TrainSettings, what: str) -> None:
    """Checks that validation images of a training are not trained on.

    Args:
        settings: of the training.
        what: needs such images.

    Raises:
        ConfigError: they are.
    """
    if settings.training_images == "all":
        raise ConfigError(
            f'{what} needs images that were not trained on, and training_images = "all" holds none out; '
            f"train without it"
        )


def recorded_data(run: RunFolder, data: Path | None = None) -> tuple[Dataset, dict[str, Sequence[Case]]]:
    """Finds the images that a finished run was trained and validated on.

    Args:
        run: the run.
        data: their folder, if it is not the one that the run was trained on.

    Returns:
        tuple: the dataset, its values scaled as the run has it, and its cases for ``train`` and ``validation``.

    Raises:
        RunFolderError: the run has not finished.
        DataError: an image is missing or not the one it was.
    """
    recorded, intensity = run.read_json(run.data), run.read_card().intensity
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    root = data or Path(recorded["root"])
    if not root.is_dir():
        raise DataError(f"the run's images are not at {root}; pass their folder with --data")
    dataset = dataclasses.replace(open_dataset(root, trained.dataset), intensity=intensity)
    cases = {case.id: case for case in dataset.cases}
    splits: dict[str, Sequence[Case]] = {}
    for split in ("train", "validation"):
        for id in recorded["splits"][split]:
            if id not in cases:
                raise DataError(f"{root} lacks the {split} image {id} of this run; pass its data with --data")
        splits[split] = [cases[id] for id in recorded["splits"][split]]
    for id, digest in checksums(_each(splits)).items():
        if digest != recorded["sha256"][id]:
            raise DataError(
                f"the image {id} at {root} is not the one this run was trained on; pass its data with --data"
            )
    return dataset, splits
