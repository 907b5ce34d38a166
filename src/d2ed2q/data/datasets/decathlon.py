"""The Medical Segmentation Decathlon's layout (Antonelli et al., Nature Communications 2022)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.described import described_dataset, read_description
from d2ed2q.data.datasets.scan import Scan, Scanner
from d2ed2q.data.masks import Classes, MaskRule
from d2ed2q.data.volumes import is_volume, volume_name
from d2ed2q.errors import DataError

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "dataset.json with a list of training images and labels in imagesTr/ and labelsTr/, as in the Decathlon"


def detect(root: Path) -> bool:
    """Whether a folder has the Decathlon's layout."""
    if not (root / "dataset.json").is_file():
        return False
    try:
        return isinstance(read_description(root).content.get("training"), list)
    except DataError:
        return False


def scan(root: Path) -> Scan:
    """Takes the pairs that ``dataset.json`` lists; test images, which have no labels, as far as they are there."""
    scanner = Scanner()
    description = read_description(root)
    train = []
    for entry in description.content["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            scanner.problems.append(f"{description.path} lists {entry!r}, which is no pair of image and label")
            continue
        image, label = root / entry["image"], root / entry["label"]
        for path in (image, label):
            if not path.is_file():
                scanner.problems.append(f"{path} is missing, but {description.path} lists it; restore it")
                scanner.orphans.append(label if path == image else image)
        train.append(_case(image, label))
    listed = [entry["image"] if isinstance(entry, dict) else entry for entry in description.content.get("test", [])]
    test = [_case(root / name, None) for name in listed if (root / str(name)).is_file()]
    if not train:
        scanner.problems.append(f"{description.path} lists no training images; the Decathlon's layout is {LAYOUT}")
    return scanner.result(tuple(train), tuple(test))


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


def _case(image: Path, label: Path | None) -> Case:
    name = volume_name(image) if is_volume(image) else image.stem
    return Case(name, image, label, None, name)
