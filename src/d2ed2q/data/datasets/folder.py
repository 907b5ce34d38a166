"""A plain folder of images and masks of the same names: the layout for one's own data."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from d2ed2q.data.dataset import Case, Dataset, MaskRule
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.images import read_mask
from d2ed2q.errors import DataError

__all__ = ["LAYOUT", "Classes", "detect", "find_classes", "load", "scan"]

LAYOUT = (
    "images/ and masks/ (and roi/, if there are regions of interest) with files of the same names, here or in train/, "
    "and likewise in test/; a patients.csv with the columns id,patient tells which images belong together"
)
_TRAINING = ("train", "training")
_JPEG = frozenset({".jpg", ".jpeg"})


def detect(root: Path) -> bool:
    """Whether a folder has the plain layout."""
    return _training_folder(root) is not None


def scan(root: Path) -> Scan:
    """Matches images, masks and regions of interest by file name without extension.

    Images of a folder ``validation/`` or ``val/`` join the training images, from which validation is cut by patient.
    Where a test image has the name of a training image, the ids of all test cases get the prefix ``test_``.
    """
    scanner = Scanner()
    folder = _training_folder(root)
    train = _split(scanner, root, folder) if folder is not None else ()
    if not train:
        scanner.problems.append(f"{root} has no training images; the plain layout is {LAYOUT}")
    for name in ("validation", "val"):
        if (root / name / "images").is_dir():
            more = _split(scanner, root, root / name)
            for id in sorted({case.id for case in train} & {case.id for case in more}):
                scanner.problems.append(f"training and {name} both have an image {id!r}; rename one of them")
            train += more
    test = _split(scanner, root, root / "test") if (root / "test" / "images").is_dir() else ()
    if {case.id for case in train} & {case.id for case in test}:
        test = tuple(
            dataclasses.replace(
                case,
                id=f"test_{case.id}",
                # Without a list of patients every image is its own patient, whatever it is called.
                patient=f"test_{case.id}" if case.patient == case.id else case.patient,
            )
            for case in test
        )
        if {case.id for case in train} & {case.id for case in test}:
            scanner.problems.append(f"training and test images of {root} share names; rename those of one side")
    return scanner.result(train, test)


def load(root: Path) -> Dataset:
    """Opens the set; every mask is read once to find the classes.

    Raises:
        DataError: files are missing, do not match or cannot be read, or the masks have no common meaning.
    """
    found = scan(root)
    labels = [case.label for case in (*found.train, *found.test) if case.label is not None]
    if found.problems or not labels:
        return to_dataset("folder", root, found, (), MaskRule.BINARY, tubular=False)
    classes = find_classes({path: np.unique(read_mask(path)).tolist() for path in labels})
    if classes.problems:
        raise DataError(next(iter(classes.problems.values())))
    return to_dataset("folder", root, found, classes.names, classes.rule, tubular=False)


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the values of all masks together mean.

    Attributes:
        rule: how a mask is read.
        names: the classes, the background first.
        problems: one sentence for each mask that does not fit the others.
    """

    rule: MaskRule
    names: tuple[str, ...]
    problems: Mapping[Path, str]


def find_classes(values: Mapping[Path, Iterable[int]]) -> Classes:
    """Finds the classes from the values that occur in the masks.

    Masks are binary (0 and 255, or 0 and 1) or hold class numbers 0…n−1. Where some hold 255 and others small numbers,
    the majority decides which of them are wrong. JPEG masks are binary always, because JPEG does not keep numbers.

    Args:
        values: from mask file to the values that occur in it.
    """
    exact = {path: frozenset(found) for path, found in values.items() if path.suffix.lower() not in _JPEG}
    white = sum(255 in found for found in exact.values())
    numbers = sum(255 not in found and max(found, default=0) > 1 for found in exact.values())
    if numbers == 0 or white > numbers or len(exact) < len(values):
        problems = {
            path: f"the mask {path} has values {_shown(found)}; a binary mask has 0 and 255, or 0 and 1"
            for path, found in exact.items()
            if not (found <= {0, 1} or found <= {0, 255})
        }
        return Classes(MaskRule.BINARY, ("background", "foreground"), problems)
    fitting = {path: found for path, found in exact.items() if 255 not in found}
    present = frozenset[int]().union(*fitting.values())
    count = max(present) + 1
    problems = {
        path: f"the mask {path} has value 255 where the others have class numbers 0…{count - 1}; correct it"
        for path in exact.keys() - fitting.keys()
    }
    absent = [number for number in range(1, count) if number not in present]
    if absent:
        path = next(path for path, found in fitting.items() if count - 1 in found)
        problems[path] = (
            f"the mask {path} has value {count - 1}, but no mask has value {absent[0]}; "
            f"number the classes 0…n−1 without gaps, or use 0 and 255 for two classes"
        )
    return Classes(MaskRule.CLASSES, ("background", *(f"class_{number}" for number in range(1, count))), problems)


def _training_folder(root: Path) -> Path | None:
    candidates = [root, *(root / name for name in _TRAINING)]
    return next((folder for folder in candidates if (folder / "images").is_dir() and (folder / "masks").is_dir()), None)


def _split(scanner: Scanner, root: Path, folder: Path) -> tuple[Case, ...]:
    images = scanner.files(folder / "images")
    labels = scanner.files(folder / "masks") if (folder / "masks").is_dir() else None
    rois = scanner.files(folder / "roi") if (folder / "roi").is_dir() else None
    table = next((path for path in (folder / "patients.csv", root / "patients.csv") if path.is_file()), None)
    patients = _patients(scanner, table) if table is not None else None
    if patients is None:
        return scanner.cases(images, labels, rois, str)
    for key in images.keys() - patients.keys():
        scanner.problems.append(f"{table} has no row for image {key!r}; add it")
    return scanner.cases(images, labels, rois, lambda key: patients.get(key, key))


def _patients(scanner: Scanner, path: Path) -> dict[str, str] | None:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        scanner.problems.append(f"{path} cannot be read ({error}); write it as UTF-8 with the columns id,patient")
        return None
    if any(not row.get("id") or not row.get("patient") for row in rows):
        scanner.problems.append(f"{path} has a row without id or patient; its columns are id,patient")
        return None
    return {row["id"]: row["patient"] for row in rows}


def _shown(found: Iterable[int]) -> str:
    numbers = sorted(found)
    return ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")
