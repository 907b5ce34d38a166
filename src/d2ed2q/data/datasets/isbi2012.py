"""ISBI 2012: cells in electron-microscope images of a fly's nerve cord (Arganda-Carreras et al., 2015)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.masks import Classes, MaskRule

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "train/image/0.png and train/label/0.png and so on, named by number"
TERMS = "the challenge's data, for research (Arganda-Carreras et al., 2015)"
_CELLS = Classes(MaskRule.THRESHOLD, ("membrane", "cell"), {})


def detect(root: Path) -> bool:
    """Whether a folder has the slices of ISBI 2012."""
    return all((root / "train" / part).is_dir() for part in ("image", "label"))


def scan(root: Path) -> Scan:
    """Matches slices and labels by number, in the order of the volume.

    All slices are of one animal. They count as patients of their own nevertheless, for otherwise nothing could be held
    out; a note says what that means.
    """
    scanner = Scanner()
    images = scanner.files(root / "train" / "image", _number)
    images = dict(sorted(images.items(), key=lambda item: int(item[0])))
    cases = scanner.cases(images, scanner.files(root / "train" / "label", _number), None, str)
    if not cases:
        scanner.problems.append(f"{root / 'train' / 'image'} has no images; ISBI 2012's layout is {LAYOUT}")
    scanner.notes += [
        "the images of ISBI 2012 are consecutive slices of one volume; neighbours resemble each other, so figures on "
        "slices that were held out promise less for other animals",
        "ISBI 2012 has no test images with labels; use folds",
    ]
    return scanner.result(cases, ())


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Cells (white), between their membranes."""
    return _CELLS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("isbi2012", root, scan(root), _CELLS, tubular=False, terms=TERMS, title="ISBI 2012")


def _number(path: Path) -> str | None:
    return path.stem if path.stem.isascii() and path.stem.isdigit() else None
