"""nnU-Net's raw layout (Isensee et al., Nature Methods 2021): one file a channel, in two or three dimensions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.datasets.decathlon import find_classes as numbered_classes
from d2ed2q.data.datasets.described import Description, described_dataset, read_description
from d2ed2q.data.datasets.scan import Scan, Scanner
from d2ed2q.data.masks import Classes

__all__ = ["LAYOUT", "detect", "find_classes", "load", "scan"]

LAYOUT = "dataset.json with channel_names and file_ending, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz"


def detect(root: Path) -> bool:
    """Whether a folder has nnU-Net's raw layout; what is wrong with its ``dataset.json`` is said when it is opened."""
    return (root / "dataset.json").is_file() and (root / "imagesTr").is_dir()


def scan(root: Path) -> Scan:
    """Matches channels and labels by name; ``imagesTs`` are test images, with labels where ``labelsTs`` has them."""
    scanner = Scanner()
    description = read_description(root)
    ending = _ending(root, description)
    train = _split(scanner, root, "Tr", description, ending)
    if not train:
        scanner.problems.append(f"{root / 'imagesTr'} has no images that end in {ending}; nnU-Net's layout is {LAYOUT}")
    test = _split(scanner, root, "Ts", description, ending) if (root / "imagesTs").is_dir() else ()
    patients = scanner.patients([case.id for case in (*train, *test)], root)
    if patients is not None:
        train, test = (
            tuple(dataclasses.replace(case, patient=patients[case.id]) for case in cases) for cases in (train, test)
        )
    return scanner.result(train, test, classes=description.masks)


def find_classes(values: Mapping[Path, Collection[int]]) -> Classes:
    """Numbers up to the largest that occurs; names are in ``dataset.json``."""
    return numbered_classes(values)


def load(root: Path) -> Dataset:
    """Opens the set.

    Raises:
        DataError: ``dataset.json`` cannot be used, or files are missing.
    """
    return described_dataset("nnunet", root, scan(root), read_description(root))


def _ending(root: Path, description: Description) -> str:
    given = description.content.get("file_ending")
    if isinstance(given, str) and given.startswith("."):
        return given
    return next(
        (end for end in (".nii.gz", ".nii", ".png", ".tif") if any(root.glob(f"imagesTr/*_0000{end}"))), ".nii.gz"
    )


def _files(folder: Path, ending: str) -> dict[str, dict[int, Path]]:
    """Of each case the files of its channels by number."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    cases: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and not path.name.startswith("."):
            cases.setdefault(match.group(1), {})[int(match.group(2))] = path
    return cases


def _split(scanner: Scanner, root: Path, part: str, description: Description, ending: str) -> tuple[Case, ...]:
    images, labels = root / f"images{part}", root / f"labels{part}"
    found = _files(images, ending)
    listed = sorted(labels.iterdir()) if labels.is_dir() else []
    names = {
        path.name[: -len(ending)]: path
        for path in listed
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
    # A colour picture holds its channels in one file.
    whole = ending not in (".nii.gz", ".nii") and all(set(files) == {0} for files in found.values())
    expected = 1 if whole else len(description.channels)
    cases = []
    for name, files in found.items():
        for number in range(expected):
            if number not in files:
                scanner.problems.append(
                    f"{images / f'{name}_{number:04d}{ending}'} is missing: each image has {expected} channels "
                    f"({', '.join(description.channels)}); add it, or remove the image"
                )
        if part == "Tr" and name not in names:
            scanner.orphans.append(files[min(files)])
            scanner.problems.append(f"{files[min(files)]} has no label {labels / (name + ending)}; add it")
        channels = [files[number] for number in sorted(files)]
        cases.append(Case(name, channels[0], names.get(name), None, name, further=tuple(channels[1:])))
    for name, path in names.items():
        if name not in found:
            scanner.orphans.append(path)
            scanner.problems.append(f"{path} belongs to no image; add {images / f'{name}_0000{ending}'}, or remove it")
    return tuple(cases)
