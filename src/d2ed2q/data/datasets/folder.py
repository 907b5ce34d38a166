"""A plain folder of images or volumes and masks of the same names: the layout for one's own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import MOST_CLASSES, Case, Dataset
from d2ed2q.data.datasets.class_folders import ClassFolders, listed_classes
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.images import stem_of
from d2ed2q.data.masks import Classes, MaskRule, distinct, is_lossy, shown
from d2ed2q.data.reading import list_files, read_label

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = (
    "images/ and masks/ (and roi/, if there are regions of interest) with files of the same names, here or in train/, "
    "and likewise in validation/ and test/; masks/ may have a folder of masks for each class; a patients.csv with the "
    "columns id,patient tells which images belong together"
)
_TRAINING = ("train", "training")


def detect(root: Path) -> bool:
    """Whether a folder has the plain layout."""
    return _training_folder(root) is not None


def scan(root: Path) -> Scan:
    """Matches images, masks and regions of interest by file name without extension.

    A folder ``validation/`` or ``val/`` holds the validation images; without one they are cut from the training images.
    Where a folder reuses names of the training images, the ids of its cases are prefixed: ``test_`` or ``validation_``.
    """
    scanner = Scanner()
    folder = _training_folder(root)
    classes = ClassFolders.find(scanner, root, folder) if folder is not None else None
    train = _split(scanner, root, folder, classes) if folder is not None else ()
    if not train:
        scanner.problems.append(f"{root} has no training images; the plain layout is {LAYOUT}")
    validation: tuple[Case, ...] = ()
    for name in ("validation", "val"):
        validation += _further_split(scanner, root, name, (*train, *validation), classes, training=True)
    test = _further_split(scanner, root, "test", (*train, *validation), classes, training=False)
    listed = _listed(scanner, root, folder) if folder is not None and classes is None else None
    return scanner.result(train, test, validation, classes=listed)


def _listed(scanner: Scanner, root: Path, folder: Path) -> Classes | None:
    """The classes that ``classes.txt`` names for the numbers 1, 2, … in masks: those of a smaller set may lack one."""
    table, names = listed_classes(scanner, root, folder)
    if table is None or names is None:
        return None
    if not names or "background" in names or len(set(names)) < len(names):
        scanner.problems.append(f"{table} must list every class but the background once, one a line")
        return None
    rule = MaskRule.BINARY if len(names) == 1 else MaskRule.CLASSES
    return Classes(rule, ("background", *names), {})


def load(root: Path) -> Dataset:
    """Opens the set; every mask is read once to find the classes.

    Raises:
        DataError: files are missing, do not match or cannot be read, or the masks have no common meaning.
    """
    found = scan(root)
    folder = _training_folder(root)
    classes = ClassFolders.find(Scanner(), root, folder) if folder is not None else None
    if classes is not None:
        names = ("background", *classes.names)
        return to_dataset("folder", root, found, Classes(MaskRule.BINARY, names, {}), tubular=False)
    if found.classes is not None:
        return to_dataset("folder", root, found, found.classes, tubular=False)
    cases = (*found.train, *found.validation, *found.test)
    labels = [case.label for case in cases if case.label is not None]
    # With files missing, what the others mean does not matter yet.
    values = {} if found.problems else {path: distinct(read_label(path).values) for path in labels}
    return to_dataset("folder", root, found, find_classes(values), tubular=False)


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Finds the classes from the values that occur in the masks.

    Masks are binary (0 and 255, or 0 and 1) or hold class numbers 0…n−1. Where some hold 255 and others small numbers,
    the majority decides which of them are wrong. JPEG masks are binary always, because JPEG does not keep numbers.

    Args:
        values: from mask file to the values that occur in it.
    """
    exact = {path: frozenset(found) for path, found in values.items() if not is_lossy(path)}
    white = sum(255 in found for found in exact.values())
    numbers = sum(255 not in found and max(found, default=0) > 1 for found in exact.values())
    if numbers == 0 or white > numbers or len(exact) < len(values):
        problems = {
            path: f"the mask {path} has values {shown(found)}; a binary mask has 0 and 255, or 0 and 1"
            for path, found in exact.items()
            if not (found <= {0, 1} or found <= {0, 255})
        }
        return Classes(MaskRule.BINARY, ("background", "foreground"), problems)
    fitting = {path: found for path, found in exact.items() if 255 not in found}
    present = frozenset[int]().union(*fitting.values())
    count = max(present) + 1
    if count > MOST_CLASSES:  # names are made below
        path = next(path for path, found in fitting.items() if count - 1 in found)
        problems = {path: f"the mask {path} has value {count - 1}; class numbers go up to {MOST_CLASSES - 1}"}
        return Classes(MaskRule.CLASSES, ("background", "foreground"), problems)
    problems = {
        path: f"the mask {path} has value 255 where the others have class numbers 0…{count - 1}; correct it"
        for path in exact
        if path not in fitting
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


def _further_split(
    scanner: Scanner,
    root: Path,
    name: str,
    before: tuple[Case, ...],
    classes: ClassFolders | None,
    training: bool,
) -> tuple[Case, ...]:
    folder = root / name
    if not (folder / "images").is_dir():
        return ()
    taken = {case.id for case in before}
    shared = any(stem_of(path) in taken for path in list_files(folder / "images"))
    cases = _split(scanner, root, folder, classes, f"{name}_" if shared else "", training)
    for id in sorted(taken & {case.id for case in cases}):
        scanner.problems.append(f"{folder} and the training images both have an image {id!r}; rename one of them")
    return cases


def _split(
    scanner: Scanner,
    root: Path,
    folder: Path,
    classes: ClassFolders | None,
    prefix: str = "",
    training: bool = True,
) -> tuple[Case, ...]:
    images = scanner.files(folder / "images")
    rois = scanner.files(folder / "roi") if (folder / "roi").is_dir() else None
    patients = scanner.patients(images, folder, root) or {key: f"{prefix}{key}" for key in images}
    # Test images may come without any masks, training images may not.
    masks = (folder / "masks").is_dir()
    if classes is not None and masks:
        cases = classes.cases(scanner, folder / "masks", images, rois, patients)
    else:
        labels = scanner.files(folder / "masks") if masks else {} if training else None
        cases = scanner.cases(images, labels, rois, lambda key: patients[key])
    return tuple(dataclasses.replace(case, id=f"{prefix}{case.id}") for case in cases)
