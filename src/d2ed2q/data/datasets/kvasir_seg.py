"""Kvasir-SEG: 1000 photographs of polyps in the gut, split in three (Jha et al., MMM 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets import folder
from d2ed2q.data.datasets.scan import Scan, to_dataset
from d2ed2q.data.masks import Classes, MaskRule, is_lossy

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "train/, validation/ and test/, each with images/ and masks/, JPEG files of the same names"
TERMS = "open access, to be cited (Jha et al., 2020)"
_POLYPS = Classes(MaskRule.BINARY, ("background", "polyp"), {})
_SPLITS = ("train", "validation", "test")


def detect(root: Path) -> bool:
    """Whether a folder has the three splits and JPEG masks; one's own may have them too, so ``auto`` asks for more."""
    parts = all((root / split / part).is_dir() for split in _SPLITS for part in ("images", "masks"))
    return parts and any(is_lossy(path) for path in (root / "train" / "masks").iterdir())


def scan(root: Path) -> Scan:
    """Matches as the plain folder does: the layouts differ in the classes' names only."""
    return folder.scan(root)


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Polyps and background; the masks are JPEG files, in which above 127 is foreground."""
    return _POLYPS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("kvasir_seg", root, scan(root), _POLYPS, tubular=False, terms=TERMS, title="Kvasir-SEG")
