"""STARE: 20 fundus photographs and their vessels (Hoover et al., IEEE TMI 2000)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.images import stem_of
from d2ed2q.data.masks import Classes, MaskRule

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "stare-images/im0001.ppm and labels-ah/im0001.ah.ppm and so on, packed with gzip (.ppm.gz) or not"
TERMS = "none stated; to be cited (Hoover et al., 2000)"
_VESSELS = Classes(MaskRule.THRESHOLD, ("background", "vessel"), {})
_LAST_OF_THE_FIRST_TEN = 139


def detect(root: Path) -> bool:
    """Whether a folder has STARE's layout."""
    return all((root / part).is_dir() for part in ("stare-images", "labels-ah"))


def scan(root: Path) -> Scan:
    """Matches images and the first annotator's labels by name.

    There is no official split. Of the two customary ones, leaving one out in turn and first ten against last ten, this
    is the second: im0001 to im0139 train. Fields of view are not published, and who is on two photographs is unknown.
    """
    scanner = Scanner()
    images = scanner.files(root / "stare-images", _named(""))
    cases = scanner.cases(images, scanner.files(root / "labels-ah", _named(r"\.ah")), None, str)
    if not cases:
        scanner.problems.append(f"{root / 'stare-images'} has no images; STARE's layout is {LAYOUT}")
    scanner.notes.append(
        "STARE has no official split: here the first ten images train and the last ten test; with so few of them, "
        "folds are recommended"
    )
    train = tuple(case for case in cases if int(case.id[2:]) <= _LAST_OF_THE_FIRST_TEN)
    return scanner.result(train, tuple(case for case in cases if case not in train))


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Vessels and background, whatever the masks hold."""
    return _VESSELS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("stare", root, scan(root), _VESSELS, tubular=True, terms=TERMS, title="STARE")


def _named(suffix: str) -> Callable[[Path], str | None]:
    pattern = re.compile(rf"(im\d{{4}}){suffix}", re.IGNORECASE)

    def key(path: Path) -> str | None:
        match = pattern.fullmatch(stem_of(path))
        return match.group(1).lower() if match else None

    return key
