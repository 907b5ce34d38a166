"""What a segmentation dataset is: cases, classes, how its masks are to be read, and how it is split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d2ed2q.data.intensity import BYTE, Intensity
from d2ed2q.data.masks import MaskRule, merge_masks, to_label
from d2ed2q.data.reading import read_channels, read_on_grid
from d2ed2q.data.sample import Sample
from d2ed2q.errors import ConfigError, DataError

__all__ = ["MOST_CLASSES", "Case", "Dataset", "checksums", "checksums_both", "split_folds", "split_validation"]

MOST_CLASSES = 256  # labels are kept, and masks written, with a byte a pixel


@dataclass(frozen=True)
class Case:
    """The files of one image.

    Attributes:
        id: unique within the dataset.
        image: the photograph.
        label: its ground truth; None where there is none.
        roi: its region of interest; None where the set has none.
        patient: cases of one patient stay on one side of every split.
        further: files of further channels of the image, in order.
        class_masks: binary masks, one for each foreground class in order, where the set has no single label file.
    """

    id: str
    image: Path
    label: Path | None
    roi: Path | None
    patient: str
    further: tuple[Path, ...] = ()
    class_masks: tuple[Path, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there is a ground truth."""
        return self.label is not None or bool(self.class_masks)

    @property
    def channel_files(self) -> tuple[Path, ...]:
        """The image, and the files of its further channels."""
        return (self.image, *self.further)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files: image, further channels, label or class masks, region of interest."""
        everything = (*self.channel_files, self.label, *self.class_masks, self.roi)
        return tuple(path for path in everything if path is not None)


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk, split into training and test cases.

    Attributes:
        name: name of the layout it was opened with.
        root: its folder.
        classes: names of all classes, the background first.
        channels: channels of every image.
        train: cases to train on; all have labels.
        test: cases to be looked at once, in the end.
        mask_rule: what the values of label files mean.
        tubular: whether the foreground is thin tubes, for which centre lines matter more than surfaces.
        validation: the makers' validation cases; empty where they are to be cut from the training cases.
        dims: 2 for pictures, 3 for volumes.
        intensity: how the values of image files become numbers from 0 to 1.
        ignore: value of labels where nothing counts; None where there is none.
        notes: what a user should know of the set, one sentence each.
        terms: under which the makers let others use the images; empty where they are not known.
        title: what its makers call it; without one, the layout's name.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    channels: int
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    mask_rule: MaskRule
    tubular: bool
    validation: tuple[Case, ...] = ()
    dims: int = 2
    intensity: Intensity = BYTE
    ignore: int | None = None
    notes: tuple[str, ...] = ()
    terms: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        if len(self.classes) > MOST_CLASSES:
            raise DataError(
                f"{self.root} has {len(self.classes)} classes, and labels hold {MOST_CLASSES} at most; merge some"
            )

    @property
    def cases(self) -> tuple[Case, ...]:
        """Training, validation and test cases."""
        return (*self.train, *self.validation, *self.test)

    @property
    def in_colour(self) -> bool:
        """Whether images are colour photographs: three channels of one file, with values from 0 to 255."""
        together = not any(case.further for case in self.cases)
        return self.dims == 2 and self.channels == 3 and self.intensity.rule == "byte" and together

    @property
    def has_roi(self) -> bool:
        """Whether any case has a region of interest."""
        return any(case.roi is not None for case in self.cases)

    def read(self, case: Case) -> Sample:
        """Reads and checks the files of one case.

        Returns:
            Sample: see there.

        Raises:
            DataError: a file cannot be read, sizes or channels differ, or a mask has a value it must not have.
        """
        image = read_channels(case.channel_files, self.intensity.rule == "byte")
        if len(image.values) != self.channels:
            raise DataError(
                f"{case.image} has {len(image.values)} channels where the dataset has {self.channels}; "
                f"save all images alike, in RGB or in grey"
            )
        if len(image.shape) != self.dims:
            raise DataError(f"{case.image} has {len(image.shape)} dimensions where the dataset has {self.dims}")
        label = roi = objects = None
        if case.label is not None:
            values = read_on_grid(case.label, image)
            if self.ignore is not None:
                roi = torch.from_numpy(values != self.ignore)
                if not roi.any():
                    raise DataError(f"the label {case.label} ignores every pixel; remove the image")
                values = np.where(values == self.ignore, 0, values)
            label = torch.from_numpy(to_label(values, self.mask_rule, len(self.classes), case.label))
            if self.mask_rule is MaskRule.OBJECTS:
                objects = torch.from_numpy(values.astype(np.int64))
        elif case.class_masks:
            masks = [to_label(read_on_grid(path, image), self.mask_rule, 2, path) for path in case.class_masks]
            label = torch.from_numpy(merge_masks(masks, self.classes[1:], case.image))
        if case.roi is not None:
            # A region is binary in every set, whatever its labels are.
            values = read_on_grid(case.roi, image)
            rule = MaskRule.THRESHOLD if self.mask_rule is MaskRule.THRESHOLD else MaskRule.BINARY
            roi = torch.from_numpy(to_label(values, rule, 2, case.roi)).bool()
            if not roi.any():
                raise DataError(f"the region of interest {case.roi} is empty; draw it, or remove it and all others")
        scaled = torch.from_numpy(self.intensity.scaled(image.values))
        return Sample(scaled, label, roi, case.id, case.patient, image.spacing, objects)


def split_folds(cases: Sequence[Case], folds: int, fold: int, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """One round of cross-validation by patient: all but one fold, and that fold.

    Over all rounds every patient is left out once; the numbers of patients differ by one at most.

    Args:
        cases: all cases.
        folds: how many.
        fold: which one to leave out, 0…folds−1.
        seed: decides who is in which; the same seed always gives the same folds.

    Returns:
        tuple: the cases of the other folds, and those of this one, each in the order given.

    Raises:
        ConfigError: the fold is out of range.
        DataError: there are fewer patients than folds.
    """
    if not 0 <= fold < folds:
        raise ConfigError(f"fold must lie between 0 and {folds - 1} for {folds} folds, got {fold}")
    patients = sorted({case.patient for case in cases})
    if len(patients) < folds:
        raise DataError(f"{folds} folds need as many patients, but the images are of {len(patients)}; use fewer folds")
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[index] for index in order[fold::folds]}
    rest = tuple(case for case in cases if case.patient not in held_out)
    return rest, tuple(case for case in cases if case.patient in held_out)


def split_validation(cases: Sequence[Case], fraction: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cuts validation cases from training cases, by patient.

    Args:
        cases: the training cases.
        fraction: share of the patients to hold out, between 0 and 1; rounded, but at least one patient.
        seed: decides which; the same seed always gives the same split.

    Returns:
        tuple: training and validation cases, each in the order given.

    Raises:
        ConfigError: the fraction or the seed is out of range.
        DataError: there are fewer than two patients.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the validation fraction must lie between 0 and 1, got {fraction}")
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, got {seed}")
    patients = sorted({case.patient for case in cases})
    if len(patients) < 2:
        raise DataError(
            f"the training images are of {len(patients)} patient(s), but training and validation need one each; "
            f"add images of others"
        )
    count = min(max(round(fraction * len(patients)), 1), len(patients) - 1)
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[index] for index in order[:count]}
    training = tuple(case for case in cases if case.patient not in held_out)
    return training, tuple(case for case in cases if case.patient in held_out)


def checksums(cases: Sequence[Case], images: bool = False) -> dict[str, str]:
    """SHA-256 of every case's bytes: image, further channels, label, region of interest, as far as there are any.

    Args:
        cases: whose files are read.
        images: whether only the image and its further channels count.

    Returns:
        dict: from case id to 64 hexadecimal digits.

    Raises:
        DataError: a file cannot be read.
    """
    digests = {}
    for case in cases:
        digest = hashlib.sha256()
        _take_in(digest, case.channel_files if images else case.files)
        digests[case.id] = digest.hexdigest()
    return digests


def checksums_both(cases: Sequence[Case]) -> tuple[dict[str, str], dict[str, str]]:
    """:func:`checksums` of every case and of its images alone, each file read once.

    Raises:
        DataError: a file cannot be read.
    """
    whole, images = {}, {}
    for case in cases:
        digest = hashlib.sha256()
        _take_in(digest, case.channel_files)
        images[case.id] = digest.hexdigest()
        _take_in(digest, case.files[len(case.channel_files) :])
        whole[case.id] = digest.hexdigest()
    return whole, images


def _take_in(digest: hashlib._Hash, paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; check the file") from error
