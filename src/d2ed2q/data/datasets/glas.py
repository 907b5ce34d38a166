"""GlaS: glands in microscope images of the colon, told apart (Sirinukunwattana et al., Medical Image Analysis 2017)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.scan import Scan, Scanner, to_dataset
from d2ed2q.data.masks import Classes, MaskRule

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan", "scan_parts"]

LAYOUT = "train_1.bmp beside train_1_anno.bmp and so on, likewise testA_1.bmp and testB_1.bmp, and Grade.csv"
TERMS = "for research (Sirinukunwattana et al., 2017)"
_GLANDS = Classes(MaskRule.OBJECTS, ("background", "gland"), {})


def detect(root: Path) -> bool:
    """Whether a folder has GlaS' layout."""
    return any(root.glob("train_*_anno.bmp"))


def scan(root: Path) -> Scan:
    """The makers' split with test part A; part B is opened as ``glas_b``."""
    return scan_parts(root, "testA")


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Glands and background; the values are numbers of glands."""
    return _GLANDS


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: files are missing or do not match.
    """
    return to_dataset("glas", root, scan(root), _GLANDS, tubular=False, terms=TERMS, title="GlaS")


def scan_parts(root: Path, test_part: str) -> Scan:
    """Matches images and annotations of the training part and one test part by name.

    The makers' split does not keep patients apart. It is taken as it is, so that figures can be compared with those of
    others, and a note says so. Without ``Grade.csv``, which some downloads lack, every image is a patient of its own,
    and a note says that too.
    """
    scanner = Scanner()
    patients = _patients(scanner, root / "Grade.csv")
    train = _part(scanner, root, "train", patients)
    if not train:
        scanner.problems.append(f"{root} has no training images; GlaS' layout is {LAYOUT}")
    return scanner.result(train, _part(scanner, root, test_part, patients), patients_shared=True)


def _part(scanner: Scanner, root: Path, part: str, patients: Mapping[str, str] | None) -> tuple[Case, ...]:
    images = scanner.files(root, _named(part, ""))
    if patients is not None:
        unknown = [key for key in images if key not in patients]
        scanner.problems += [f"{root / 'Grade.csv'} has no row for image {key!r}; add it" for key in unknown]
    images = dict(sorted(images.items(), key=lambda item: int(item[0].rpartition("_")[2])))
    labels = scanner.files(root, _named(part, "_anno"))
    return scanner.cases(images, labels, None, lambda key: (patients or {}).get(key, key))


def _named(part: str, suffix: str) -> Callable[[Path], str | None]:
    pattern = re.compile(rf"({part}_\d+){suffix}")

    def key(path: Path) -> str | None:
        match = pattern.fullmatch(path.stem)
        return match.group(1) if match else None

    return key


def _patients(scanner: Scanner, path: Path) -> dict[str, str] | None:
    if not path.is_file():
        scanner.notes.append(
            f"{path} is missing, so every image counts as a patient of its own, and validation images may be of "
            f"patients that are trained on; get it from the original download"
        )
        return None
    try:
        # Its lines end in CR alone, and its column names start with spaces.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        scanner.problems.append(f"{path} cannot be read ({error}); get it from the original download")
        return None
    columns = rows[0] if rows else []
    if "name" not in columns or "patient ID" not in columns:
        scanner.problems.append(f"{path} has no columns name and patient ID; get it from the original download")
        return None
    name, patient = columns.index("name"), columns.index("patient ID")
    return {row[name]: row[patient] for row in rows[1:] if len(row) > max(name, patient) and row[patient]}
