"""The Medical Segmentation Decathlon's layout (Antonelli et al., Nature Communications 2022)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.described import described_dataset, read_content, read_description
from d2ed2q.data.datasets.scan import Scan, Scanner
from d2ed2q.data.masks import Classes, MaskRule
from d2ed2q.data.volumes import is_volume, volume_name
from d2ed2q.errors import DataError

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "dataset.json with a list of training images and labels in imagesTr/ and labelsTr/, as in the Decathlon"


def detect(root: Path) -> bool:
    """Whether a folder has the Decathlon's layout; nnU-Net's first version listed images too, but not their files."""
    if not (root / "dataset.json").is_file():
        return False
    try:
        listed = read_content(root).get("training")
    except DataError:
        return False
    if not isinstance(listed, list):
        return False
    first = next((root / entry["image"] for entry in listed if _is_pair(entry)), None)
    return first is None or first.is_file() or not first.with_name(f"{_name(first)}_0000.nii.gz").is_file()


def scan(root: Path) -> Scan:
    """Takes the pairs that ``dataset.json`` lists; test images, which have no labels, as far as they are there."""
    scanner = Scanner()
    description = read_description(root)
    content = description.content
    training, testing = (content[key] if isinstance(content.get(key), list) else [] for key in ("training", "test"))
    train: dict[str, tuple[Path, Path]] = {}
    for entry in training:
        if not _is_pair(entry):
            scanner.problems.append(f"{description.path} lists {entry!r}, which is no pair of image and label")
            continue
        image, label = root / entry["image"], root / entry["label"]
        for path in (image, label):
            if not path.is_file():
                scanner.problems.append(f"{path} is missing, but {description.path} lists it; restore it")
                scanner.orphans.append(label if path == image else image)
        if _name(image) in train:
            scanner.problems.append(f"{description.path} lists {image} twice; remove one of the entries")
        train[_name(image)] = image, label
    named = [root / str(entry["image"] if _is_image(entry) else entry) for entry in testing]
    test = {_name(path): path for path in named if path.is_file()}
    if not train:
        scanner.problems.append(f"{description.path} lists no training images; the Decathlon's layout is {LAYOUT}")
    patients = scanner.patients([*train, *test], root) or {name: name for name in (*train, *test)}
    return scanner.result(
        tuple(Case(name, image, label, None, patients[name]) for name, (image, label) in train.items()),
        tuple(Case(name, image, None, None, patients[name]) for name, image in test.items()),
        classes=description.masks,
    )


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Numbers up to the largest that occurs; names are in ``dataset.json``."""
    largest = max((max(found, default=0) for found in values.values()), default=1)
    return Classes(MaskRule.CLASSES, ("background", *(f"class_{n}" for n in range(1, largest + 1))), {})


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: ``dataset.json`` cannot be used, or files are missing.
    """
    return described_dataset("decathlon", root, scan(root), read_description(root))


def _is_image(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("image"), str)


def _is_pair(entry: Any) -> bool:
    return _is_image(entry) and isinstance(entry.get("label"), str)


def _name(path: Path) -> str:
    return volume_name(path) if is_volume(path) else path.stem
