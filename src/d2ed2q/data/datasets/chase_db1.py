"""CHASE_DB1: 28 fundus photographs, both eyes of 14 children, and their vessels (Fraz et al., IEEE TBME 2012)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.masks import Classes, MaskRule

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "Image_01L.jpg beside Image_01L_1stHO.png and so on, with or without a folder mask/ holding Image_01L.gif"
TERMS = "CC BY 4.0 (Fraz et al., 2012)"
_VESSELS = Classes(MaskRule.THRESHOLD, ("background", "vessel"), {})
_LAST_TRAINING_CHILD = 10


def detect(root: Path) -> bool:
    """Whether a folder has CHASE_DB1's layout."""
    return any(root.glob("Image_*_1stHO.png"))


def scan(root: Path) -> Scan:
    """Matches images, first annotator's masks and fields of view by name.

    The customary split takes the first 20 images for training and the last 8 for test. As the children come in order,
    two images each, that is children 1–10 and 11–14: both eyes of a child are always on the same side.
    """
    scanner = Scanner()
    images = scanner.files(root, _eye(r""))
    labels = scanner.files(root, _eye(r"_1stHO"))
    rois = scanner.files(root / "mask", _eye(r"")) if (root / "mask").is_dir() else None
    cases = scanner.cases(images, labels, rois, lambda key: key.removeprefix("Image_")[:-1])
    if not cases:
        scanner.problems.append(f"{root} has no images; CHASE_DB1's layout is {LAYOUT}")
    train = tuple(case for case in cases if int(case.patient) <= _LAST_TRAINING_CHILD)
    test = tuple(case for case in cases if int(case.patient) > _LAST_TRAINING_CHILD)
    return scanner.result(train, test)


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Vessels and background, whatever the masks hold."""
    return _VESSELS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("chase_db1", root, scan(root), _VESSELS, tubular=True, terms=TERMS, title="CHASE_DB1")


def _eye(suffix: str) -> Callable[[Path], str | None]:
    pattern = re.compile(rf"(Image_\d+[LR]){suffix}")

    def key(path: Path) -> str | None:
        match = pattern.fullmatch(path.stem)
        return match.group(1) if match else None

    return key
