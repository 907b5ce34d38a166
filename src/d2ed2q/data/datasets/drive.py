"""DRIVE: 40 fundus photographs, their vessels and fields of view (Staal et al., IEEE TMI 2004)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.masks import Classes, MaskRule

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "training/ and test/, each with images/, 1st_manual/ and mask/, files named by number as in 21_manual1.gif"
TERMS = "for research and education; the images may not be passed on (Staal et al., 2004)"
# First annotators' masks are 0/255 GIFs, but second annotators' come with palettes of 3 and 253.
_VESSELS = Classes(MaskRule.THRESHOLD, ("background", "vessel"), {})


def detect(root: Path) -> bool:
    """Whether a folder has DRIVE's layout."""
    return all((root / "training" / part).is_dir() for part in ("images", "1st_manual"))


def scan(root: Path) -> Scan:
    """Matches the files of both splits by number; the number is the patient.

    Some downloads come without ``test/1st_manual``, and some without ``test``.
    """
    scanner = Scanner()
    train = _split(scanner, root / "training")
    if not train:
        scanner.problems.append(f"{root / 'training' / 'images'} has no images; DRIVE's layout is {LAYOUT}")
    test = _split(scanner, root / "test") if (root / "test" / "images").is_dir() else ()
    return scanner.result(train, test)


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Vessels and background, whatever the masks hold."""
    return _VESSELS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("drive", root, scan(root), _VESSELS, tubular=True, terms=TERMS, title="DRIVE")


def _number(path: Path) -> str | None:
    match = re.match(r"\d+", path.name)
    return match.group() if match else None


def _split(scanner: Scanner, folder: Path) -> tuple[Case, ...]:
    images = scanner.files(folder / "images", _number)
    manual = folder / "1st_manual"
    labels = scanner.files(manual, _number) if manual.is_dir() else None
    if not (folder / "mask").is_dir():
        scanner.problems.append(f"there is no folder {folder / 'mask'} of fields of view; DRIVE's layout is {LAYOUT}")
        return scanner.cases(images, labels, None, str)
    return scanner.cases(images, labels, scanner.files(folder / "mask", _number), str)
