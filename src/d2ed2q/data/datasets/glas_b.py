"""GlaS with the challenge's second test part: the same training images, 20 other test images."""

from __future__ import annotations

from pathlib import Path

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets import glas
from d2ed2q.data.datasets.glas import find_classes
from d2ed2q.data.datasets.scan import Scan, to_dataset

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = f"{glas.LAYOUT}, with testB to test"


def detect(root: Path) -> bool:
    """Whether a folder has GlaS' layout with test part B."""
    return glas.detect(root) and any(root.glob("testB_*.bmp"))


def scan(root: Path) -> Scan:
    """The makers' split with test part B."""
    return glas.scan_parts(root, "testB")


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("glas_b", root, scan(root), find_classes({}), tubular=False, terms=glas.TERMS, title="GlaS")
