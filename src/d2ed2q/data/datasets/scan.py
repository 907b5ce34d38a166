"""What a dataset layout finds in a folder, complaints included: opening refuses at one, checking lists all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.images import list_unread, stem_of
from d2ed2q.data.intensity import BYTE, PERCENTILE
from d2ed2q.data.masks import Classes
from d2ed2q.data.reading import list_files, read_channels
from d2ed2q.data.volumes import is_volume
from d2ed2q.errors import DataError

__all__ = ["Scan", "Scanner", "to_dataset"]


@dataclass(frozen=True)
class Scan:
    """Files matched to cases, before any of them is opened.

    Attributes:
        train: training cases; the label is None where it was not found.
        test: test cases.
        orphans: images without the mask they should have, and masks without an image.
        problems: one sentence for each thing that is wrong with the layout, the orphans included.
        validation: the makers' validation cases, where they cut them.
        notes: what a user should know of the set, one sentence each; no reason to refuse it.
        classes: what the values of labels mean, where a file of the set says it; None where their values tell.
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    orphans: tuple[Path, ...]
    problems: tuple[str, ...]
    validation: tuple[Case, ...] = ()
    notes: tuple[str, ...] = ()
    classes: Classes | None = None


@dataclass
class Scanner:
    """Matches files to cases and collects what does not fit.

    Attributes:
        orphans: images without a mask, and masks without an image.
        problems: one sentence each.
        notes: likewise.
    """

    orphans: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def files(self, folder: Path, key: Callable[[Path], str | None] = stem_of) -> dict[str, Path]:
        """The image files of a folder by key, sorted by file name; files without a key do not belong to the set."""
        found: dict[str, Path] = {}
        for path in list_unread(folder):
            remedy = "is not read; save it as PNG, TIFF or NIfTI" if path.exists() else "leads nowhere; fetch the file"
            self.problems.append(f"{path} {remedy}")
        for path in list_files(folder):
            if any("\ud800" <= letter <= "\udfff" for letter in path.name):  # bytes that are no UTF-8
                self.problems.append(f"the name {path.name!a} in {folder} is not in UTF-8; rename the file")
                continue
            name = key(path)
            if name is None:
                continue
            if name in found:
                self.problems.append(f"{path} and {found[name]} belong to the same case {name!r}; remove one of them")
            found.setdefault(name, path)
        return found

    def patients(self, images: Collection[str], *folders: Path) -> dict[str, str] | None:
        """Reads who the images belong to from the first ``patients.csv`` (columns id,patient); None without one.

        An image that is missing from the table is its own patient, and a problem.

        Args:
            images: their ids.
            folders: where the table may be.
        """
        path = next((folder / "patients.csv" for folder in folders if (folder / "patients.csv").is_file()), None)
        if path is None:
            return None
        patients = {key: key for key in images}
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            self.problems.append(f"{path} cannot be read ({error}); write it as UTF-8 with the columns id,patient")
            return patients
        if any(not (row.get("id") or "").strip() or not (row.get("patient") or "").strip() for row in rows):
            self.problems.append(f"{path} has a row without id or patient; its columns are id,patient")
            return patients
        known: dict[str, str] = {}
        for row in rows:
            key, patient = row["id"].strip(), row["patient"].strip()
            if known.setdefault(key, patient) != patient:
                self.problems.append(f"{path} gives image {key!r} to {known[key]!r} and to {patient!r}; keep one row")
        self.problems += [f"{path} has no row for image {key!r}; add it" for key in images if key not in known]
        return patients | {key: known[key] for key in images if key in known}

    def cases(
        self,
        images: Mapping[str, Path],
        labels: Mapping[str, Path] | None,
        rois: Mapping[str, Path] | None,
        patient: Callable[[str], str],
    ) -> tuple[Case, ...]:
        """Matches the images, labels and regions of one split by key; None where the split has no such folder."""
        for key, path in images.items():
            if labels is not None and key not in labels:
                self.orphans.append(path)
                self.problems.append(f"{path} has no mask; add one of the same name, or remove the image")
            if rois is not None and key not in rois:
                self.problems.append(f"{path} has no region of interest; add one, or remove the others")
        for others in (labels, rois):
            for key, path in (others or {}).items():
                if key not in images:
                    self.orphans.append(path)
                    self.problems.append(f"{path} belongs to no image; add the image of the same name, or remove it")
        return tuple(
            Case(key, path, (labels or {}).get(key), (rois or {}).get(key), patient(key))
            for key, path in images.items()
        )

    def result(
        self,
        train: tuple[Case, ...],
        test: tuple[Case, ...],
        validation: tuple[Case, ...] = (),
        patients_shared: bool = False,
        classes: Classes | None = None,
    ) -> Scan:
        """Checks what concerns several splits, and closes the scan.

        Args:
            train: the training cases.
            test: the test cases.
            validation: the makers' validation cases.
            patients_shared: whether the makers themselves put patients on both sides, which is then noted and not
                refused.
            classes: what the values of labels mean, where a file of the set says it.
        """
        splits = {"training": train, "validation": validation, "test": test}
        if test and any(case.roi for case in train) and not any(case.roi for case in test):
            self.notes.append(
                "training images have regions of interest and test images have none: what lies outside is not trained "
                "on, but scored; add regions to the test images for figures of what counts"
            )
        for one, other in combinations(splits, 2):
            shared = {case.patient for case in splits[one]} & {case.patient for case in splits[other]}
            if shared and patients_shared:
                names = ", ".join(sorted(shared, key=lambda name: (len(name), name)))
                self.notes.append(
                    f"the makers' split has images of the same patients in {one} and in {other} ({names}), which "
                    f"flatters figures on {other}; folds by patient are the honest alternative"
                )
            elif shared:
                self.problems.append(f"patient {min(shared)!r} is in {one} and in {other}; move all images to one side")
        return Scan(train, test, tuple(self.orphans), tuple(self.problems), validation, tuple(self.notes), classes)


def to_dataset(
    name: str, root: Path, scan: Scan, classes: Classes, tubular: bool, terms: str = "", title: str = ""
) -> Dataset:
    """Makes a dataset of a scan without problems.

    Raises:
        DataError: the scan or the classes have a problem, or the first image cannot be read.
    """
    problems = (*scan.problems, *classes.problems.values())
    if problems:
        more = f" (and {len(problems) - 1} more; d2ed2q data check {root} lists them)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    first = (scan.train or scan.test)[0].image
    # A volume of whole numbers up to 255 is no photograph: another of the same scanner may go further.
    intensity = PERCENTILE if is_volume(first) else BYTE
    values = read_channels((first,), as_bytes=intensity is BYTE).values
    return Dataset(
        name,
        root,
        classes.names,
        len(values),
        scan.train,
        scan.test,
        classes.rule,
        tubular,
        validation=scan.validation,
        dims=values.ndim - 1,
        intensity=intensity,
        notes=scan.notes,
        terms=terms,
        title=title,
    )
