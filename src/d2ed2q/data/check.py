"""Checking a dataset folder: all of its problems at once, where opening it stops at the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2ed2q.data.dataset import Case
from d2ed2q.data.datasets import LAYOUTS, find_layout
from d2ed2q.data.images import read_image, read_mask
from d2ed2q.data.masks import MaskRule, check_values, distinct, is_lossy, merge_masks
from d2ed2q.errors import DataError

__all__ = ["CheckReport", "CheckedPair", "check_dataset"]


@dataclass(frozen=True)
class CheckedPair:
    """One image and its mask.

    Attributes:
        case: the files.
        split: ``train``, ``validation`` or ``test``.
        image_size: height and width; None if the image cannot be read.
        label_size: height and width of the mask; None if there is none or it cannot be read.
    """

    case: Case
    split: str
    image_size: tuple[int, int] | None
    label_size: tuple[int, int] | None


@dataclass(frozen=True)
class CheckReport:
    """What is in a dataset folder, and what is wrong with it.

    Attributes:
        layout: name of the dataset layout; None if there is none.
        pairs: all images with their masks.
        orphans: images without the mask they should have, masks without an image.
        size_mismatches: masks and regions of interest of another size than their image.
        mask_violations: masks and regions of interest with values they must not have.
        unreadable: files that cannot be read as pictures.
        empty_masks: masks that are all background; one here and there is no problem.
        problems: one sentence for each problem.
        notes: what a user should know of the set, one sentence each.
    """

    layout: str | None
    pairs: tuple[CheckedPair, ...]
    orphans: tuple[Path, ...]
    size_mismatches: tuple[Path, ...]
    mask_violations: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    empty_masks: tuple[Path, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the dataset can be opened, read and trained on."""
        return not self.problems


def check_dataset(root: Path, name: str = "auto") -> CheckReport:
    """Reads all files of a dataset and collects what is wrong.

    Args:
        root: the dataset's folder.
        name: its layout, as for :func:`~d2ed2q.data.open_dataset`.

    Raises:
        ConfigError: there is no layout of this name.
    """
    root = Path(root)
    try:
        key = find_layout(root, name)
        layout = LAYOUTS[key]
        scan = layout.scan(root)
    except DataError as error:
        return CheckReport(None, (), (), (), (), (), (), (str(error),))
    checker = _Checker(list(scan.problems))
    for split, cases in (("train", scan.train), ("validation", scan.validation), ("test", scan.test)):
        for case in cases:
            checker.read(case, split)
    if len(set(checker.channels.values())) > 1:
        grey = [path for path, channels in checker.channels.items() if channels == 1]
        checker.problems.append(
            f"{len(grey)} of {len(checker.channels)} images are grey and the others RGB ({grey[0]} is grey); "
            f"save all alike"
        )
    classes = layout.find_classes(checker.labels)
    checker.refuse(classes.problems)
    # A region is binary in every set, whatever its labels are, and so are masks of single classes.
    binary = MaskRule.THRESHOLD if classes.rule is MaskRule.THRESHOLD else MaskRule.BINARY
    for files, rule, count in (
        (checker.labels, classes.rule, len(classes.names)),
        (checker.class_masks, binary, 2),
        (checker.rois, binary, 2),
    ):
        for path, found in files.items():
            if path not in classes.problems:
                checker.check_values(path, found, rule, count)
    labels = {path for case in scan.train for path in (case.label, *case.class_masks)}
    training = labels & {*checker.labels, *checker.class_masks}
    if training and training <= set(checker.empty):
        checker.problems.append(f"all {len(training)} training masks are background only; correct the masks")
    return CheckReport(
        key,
        tuple(checker.pairs),
        scan.orphans,
        tuple(checker.mismatches),
        tuple(checker.violations),
        tuple(checker.unreadable),
        tuple(checker.empty),
        tuple(checker.problems),
        scan.notes,
    )


@dataclass
class _Checker:
    problems: list[str]
    pairs: list[CheckedPair] = field(default_factory=list)
    mismatches: list[Path] = field(default_factory=list)
    violations: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    channels: dict[Path, int] = field(default_factory=dict)
    labels: dict[Path, frozenset[int]] = field(default_factory=dict)
    class_masks: dict[Path, frozenset[int]] = field(default_factory=dict)
    rois: dict[Path, frozenset[int]] = field(default_factory=dict)

    def read(self, case: Case, split: str) -> None:
        """Reads the files of one case."""
        size = label_size = None
        try:
            pixels = read_image(case.image)
        except DataError as error:
            self._unreadable(case.image, error)
        else:
            size = (pixels.shape[0], pixels.shape[1])
            self.channels[case.image] = pixels.shape[2]
        if case.label is not None:
            values = self._mask(case.label, case.image, size)
            if values is not None:
                label_size = (values.shape[0], values.shape[1])
                self.labels[case.label] = distinct(values)
                if not values.any():
                    self.empty.append(case.label)
        elif case.class_masks:
            label_size = self._class_masks(case, size)
        if case.roi is not None:
            values = self._mask(case.roi, case.image, size)
            if values is not None:
                self.rois[case.roi] = distinct(values)
                if not values.any():
                    self.problems.append(f"the region of interest {case.roi} is empty; draw it")
        self.pairs.append(CheckedPair(case, split, size, label_size))

    def _class_masks(self, case: Case, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Reads the masks of all classes and looks whether they overlap; the size of the first that can be read."""
        masks: dict[str, np.ndarray] = {}
        for path in case.class_masks:
            values = self._mask(path, case.image, size)
            if values is not None:
                self.class_masks[path] = distinct(values)
                masks[path.parent.name] = values > 127 if is_lossy(path) else values
                if not masks[path.parent.name].any():
                    self.empty.append(path)
        shapes = [mask.shape for mask in masks.values()]
        if len(set(shapes)) == 1:
            try:
                merge_masks(list(masks.values()), list(masks), case.image)
            except DataError as error:
                self.refuse({case.class_masks[-1]: str(error)})
        return (shapes[0][0], shapes[0][1]) if shapes else None

    def refuse(self, problems: Mapping[Path, str]) -> None:
        """Takes over what is wrong with the values of masks."""
        for path, problem in problems.items():
            self.violations.append(path)
            self.problems.append(problem)

    def check_values(self, path: Path, found: frozenset[int], rule: MaskRule, n_classes: int) -> None:
        """Checks the values of one mask."""
        try:
            check_values(found, rule, n_classes, path)
        except DataError as error:
            self.refuse({path: str(error)})

    def _mask(self, path: Path, image: Path, size: tuple[int, int] | None) -> np.ndarray | None:
        try:
            values = read_mask(path)
        except DataError as error:
            self._unreadable(path, error)
            return None
        if size is not None and values.shape != size:
            self.mismatches.append(path)
            self.problems.append(
                f"{path} is {values.shape[1]}×{values.shape[0]} pixels, but its image {image} is {size[1]}×{size[0]}; "
                f"export it at the image's own size"
            )
        return values

    def _unreadable(self, path: Path, error: DataError) -> None:
        self.unreadable.append(path)
        self.problems.append(str(error))
