"""Checking a dataset folder: all of its problems at once, where opening it stops at the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2ed2q.data.dataset import Case, checksums
from d2ed2q.data.datasets import LAYOUTS, find_layout
from d2ed2q.data.masks import Classes, MaskRule, check_values, distinct, is_lossy, merge_masks
from d2ed2q.data.reading import Channels, join_channels, read_channels, read_label, require_on_grid
from d2ed2q.data.volumes import is_volume
from d2ed2q.errors import DataError

__all__ = ["CheckReport", "CheckedPair", "check_dataset"]


@dataclass(frozen=True)
class CheckedPair:
    """One image and its mask.

    Attributes:
        case: the files.
        split: ``train``, ``validation`` or ``test``.
        image_size: height and width, of a volume depth, height and width; None if the image cannot be read.
        label_size: likewise of the mask; None if there is none or it cannot be read.
    """

    case: Case
    split: str
    image_size: tuple[int, ...] | None
    label_size: tuple[int, ...] | None


@dataclass(frozen=True)
class CheckReport:
    """What is in a dataset folder, and what is wrong with it.

    Attributes:
        layout: name of the dataset layout; None if there is none.
        pairs: all images with their masks.
        orphans: images without the mask they should have, masks without an image.
        size_mismatches: masks, regions of interest and further channels of another size, spacing or place than their
            image.
        mask_violations: masks and regions of interest with values they must not have.
        unreadable: files that cannot be read as pictures or volumes.
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
    described = scan.classes is not None and key != "folder"  # sets whose description lets images be of any depth
    checker = _Checker(list(scan.problems), None if described else True)
    for split, cases in (("train", scan.train), ("validation", scan.validation), ("test", scan.test)):
        for case in cases:
            checker.read(case, split)
    checker.compare_images()
    checker.find_twins()
    classes = scan.classes or layout.find_classes(checker.labels)
    checker.check_masks(classes)
    if classes.rule is MaskRule.CLASSES:
        checker.check_occurrence(classes, [case.label for case in scan.train if case.label is not None])
    checker.check_class_folders([path for case in scan.train for path in case.class_masks])
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
    as_bytes: bool | None  # None until the first image tells
    pairs: list[CheckedPair] = field(default_factory=list)
    mismatches: list[Path] = field(default_factory=list)
    violations: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    files: int = 1  # of an image
    channels: dict[Path, int] = field(default_factory=dict)
    dims: dict[Path, int] = field(default_factory=dict)
    labels: dict[Path, frozenset[int]] = field(default_factory=dict)
    class_masks: dict[Path, frozenset[int]] = field(default_factory=dict)
    rois: dict[Path, frozenset[int]] = field(default_factory=dict)

    def read(self, case: Case, split: str) -> None:
        """Reads the files of one case."""
        image, label_size = self._image(case), None
        if case.label is not None:
            values = self._mask(case.label, image)
            if values is not None:
                label_size = tuple(values.shape)
                self.labels[case.label] = distinct(values)
                if not values.any():
                    self.empty.append(case.label)
        elif case.class_masks:
            label_size = self._class_masks(case, image)
        if case.roi is not None:
            values = self._mask(case.roi, image)
            if values is not None:
                self.rois[case.roi] = distinct(values)
                if not values.any():
                    self.problems.append(f"the region of interest {case.roi} is empty; draw it")
        self.pairs.append(CheckedPair(case, split, None if image is None else image.shape, label_size))

    def _image(self, case: Case) -> Channels | None:
        """Reads all channels; None where the first cannot be read."""
        parts = []
        for path in case.channel_files:
            try:
                # A single volume among pictures is told by its dimensions or its kind below.
                part = read_channels((path,), bool(self.as_bytes) and not is_volume(path))
            except DataError as error:
                self._unreadable(path, error)
                continue
            if self.as_bytes is None:
                self.as_bytes = part.volume is None and part.values.dtype == np.uint8
            parts.append(part)
        if not parts or parts[0].path != case.image:
            return None
        image = parts[0]
        for part in parts[1:]:
            try:
                join_channels((image, part))
            except DataError as error:
                self.mismatches.append(part.path)
                self.problems.append(str(error))
        # An image that lacks a file is reported as such.
        if len(parts) == 1 + len(case.further) >= self.files:
            if len(parts) > self.files:
                self.files = len(parts)
                self.channels.clear()
            self.channels[case.image] = sum(len(part.values) for part in parts)
        self.dims[case.image] = len(image.shape) if image.volume is None else -len(image.shape)
        return image

    def find_twins(self) -> None:
        """Looks for the same picture under two names, which may be trained on and scored."""
        first: dict[str, CheckedPair] = {}
        for pair in self.pairs:
            if pair.image_size is None or not all(path.is_file() for path in pair.case.channel_files):
                continue
            digest = checksums([pair.case], images=True)[pair.case.id]
            twin = first.setdefault(digest, pair)
            apart = twin.split != pair.split or (pair.split == "train" and twin.case.patient != pair.case.patient)
            if twin is not pair and apart:
                self.problems.append(
                    f"{pair.case.image} is the same picture as {twin.case.image}, and one may score what was trained "
                    f"on the other; remove one of them, or give both to one patient in patients.csv"
                )

    def compare_images(self) -> None:
        """Looks whether all images are of one kind and have the same channels."""
        kinds = {-2: "single slices", -3: "volumes", 2: "pictures"}
        if len(set(self.dims.values())) > 1:
            examples = {kind: path for path, kind in self.dims.items()}
            found = ", ".join(f"{kinds[kind]} ({path} is one)" for kind, path in sorted(examples.items()))
            self.problems.append(f"images are of different kinds: {found}; keep them in sets of their own")
        if set(self.channels.values()) == {1, 3}:
            grey = [path for path, channels in self.channels.items() if channels == 1]
            self.problems.append(
                f"{len(grey)} of {len(self.channels)} images are grey and the others RGB ({grey[0]} is grey); "
                f"save all alike"
            )
        elif len(set(self.channels.values())) > 1:
            few = {channels: path for path, channels in self.channels.items()}
            found = ", ".join(f"{channels} ({path})" for channels, path in sorted(few.items()))
            self.problems.append(f"images have different numbers of channels: {found}; save all alike")

    def check_masks(self, classes: Classes) -> None:
        """Checks the values of all masks and regions."""
        self.refuse(classes.problems)
        # A region is binary in every set, whatever its labels are, and so are masks of single classes.
        binary = MaskRule.THRESHOLD if classes.rule is MaskRule.THRESHOLD else MaskRule.BINARY
        for files, rule, count in (
            (self.labels, classes.rule, len(classes.names)),
            (self.class_masks, binary, 2),
            (self.rois, binary, 2),
        ):
            for path, found in files.items():
                if files is self.labels and found == {classes.ignore}:
                    self.refuse({path: f"the label {path} ignores every pixel; remove the image"})
                elif path not in classes.problems:
                    self.check_values(path, found - {classes.ignore}, rule, count)

    def check_occurrence(self, classes: Classes, labels: Sequence[Path]) -> None:
        """Looks whether every class occurs; what no training image shows cannot be learnt."""
        if not labels or not set(labels) <= set(self.labels) or set(labels) <= set(self.empty):
            return
        present = frozenset[int]().union(*(self.labels[path] for path in labels))
        for number, name in enumerate(classes.names):
            if number not in present:
                self.problems.append(
                    f"the class {name!r} never occurs in the {len(labels)} training images; add some that show it, or "
                    f"leave it out of the classes"
                )

    def check_class_folders(self, masks: Sequence[Path]) -> None:
        """Looks whether every class that has a folder occurs in a training image."""
        if set(masks) <= set(self.empty):  # which is said in one sentence
            return
        for name in dict.fromkeys(path.parent.name for path in masks):
            own = [path for path in masks if path.parent.name == name]
            if set(own) <= set(self.class_masks) and set(own) <= set(self.empty):
                self.problems.append(
                    f"the class {name!r} never occurs in the {len(own)} training images; add some that show it, or "
                    f"leave out its folder"
                )

    def _class_masks(self, case: Case, image: Channels | None) -> tuple[int, ...] | None:
        """Reads the masks of all classes and looks whether they overlap; the size of the first that can be read."""
        masks: dict[str, np.ndarray] = {}
        for path in case.class_masks:
            values = self._mask(path, image)
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
        return tuple(shapes[0]) if shapes else None

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

    def _mask(self, path: Path, image: Channels | None) -> np.ndarray | None:
        try:
            label = read_label(path)
        except DataError as error:
            self._unreadable(path, error)
            return None
        try:
            if image is not None:
                require_on_grid(label, image)
        except DataError as error:
            self.mismatches.append(path)
            self.problems.append(str(error))
        return label.values

    def _unreadable(self, path: Path, error: DataError) -> None:
        self.unreadable.append(path)
        self.problems.append(str(error))
