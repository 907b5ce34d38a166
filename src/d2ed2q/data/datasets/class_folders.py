"""Masks in one sub-folder for each class, as some programs export them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from d2ed2q.data.dataset import Case
from d2ed2q.data.datasets.scan import Scanner
from d2ed2q.data.reading import list_files

__all__ = ["ClassFolders", "listed_classes"]


def listed_classes(scanner: Scanner, root: Path, folder: Path) -> tuple[Path | None, tuple[str, ...] | None]:
    """The foreground classes that ``classes.txt`` lists, one a line, and that file; None where there is none.

    Args:
        scanner: takes what is wrong.
        root: the set's folder.
        folder: what holds the training images; a list there comes first.
    """
    table = next((path for path in (folder / "classes.txt", root / "classes.txt") if path.is_file()), None)
    if table is None:
        return None, None
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        scanner.problems.append(f"{table} cannot be read ({error}); write it as UTF-8, one class a line")
        return table, None
    return table, tuple(line.strip() for line in lines if line.strip())


@dataclass(frozen=True)
class ClassFolders:
    """The foreground classes of a set whose ``masks/`` has a sub-folder for each of them.

    Attributes:
        names: of the sub-folders, in the order of the classes.
    """

    names: tuple[str, ...]

    @staticmethod
    def find(scanner: Scanner, root: Path, folder: Path) -> ClassFolders | None:
        """Finds them from the training masks; None where there are no sub-folders.

        The order is that of ``classes.txt``, beside ``masks/`` or in the set's own folder; without it alphabetical.

        Args:
            scanner: takes what is wrong.
            root: the set's folder.
            folder: what holds the training images.
        """
        masks = folder / "masks"
        names = _folders(masks)
        # Beside masks, folders without any, such as a program's leftovers, mean nothing.
        if not names or (list_files(masks) and not any(list_files(masks / name) for name in names)):
            return None
        table, ordered = listed_classes(scanner, root, folder)
        if table is None or ordered is None:
            return ClassFolders(names)
        if sorted(ordered) != sorted(names):
            scanner.problems.append(
                f"{table} lists {', '.join(ordered) or 'nothing'}, but {masks} has {', '.join(names)}; "
                f"list each of these folders once, one a line"
            )
            return ClassFolders(names)
        return ClassFolders(ordered)

    def cases(
        self,
        scanner: Scanner,
        masks: Path,
        images: Mapping[str, Path],
        rois: Mapping[str, Path] | None,
        patients: Mapping[str, str],
    ) -> tuple[Case, ...]:
        """Matches the images of one split with their masks; each image has one in every class, be it empty, or none."""
        loose, present = list_files(masks), _folders(masks)
        if loose:
            scanner.problems.append(f"{loose[0]} is in none of the folders of classes beside it; move it into one")
        for name in sorted(set(present) ^ set(self.names)):
            there = "has a folder" if name in present else "has no folder"
            scanner.problems.append(f"{masks} {there} {name!r}; all splits need the classes {', '.join(self.names)}")
        found = {name: scanner.files(masks / name) for name in self.names if name in present}
        # Whatever has one mask at least counts as labelled; what it lacks is reported by class.
        labels = {key: path for files in reversed(list(found.values())) for key, path in files.items()}
        cases = scanner.cases(images, labels, rois, lambda key: patients[key])
        for name, files in found.items():
            scanner.problems += [
                f"{path} has masks of other classes, but none in {masks / name}; add one, all background if there is "
                f"nothing of this class"
                for key, path in images.items()
                if key in labels and key not in files
            ]
        return tuple(
            dataclasses.replace(
                case, label=None, class_masks=tuple(files[case.id] for files in found.values() if case.id in files)
            )
            for case in cases
        )


def _folders(path: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
