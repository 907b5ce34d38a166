"""The dataset layouts that are known by name.

A new one is one module with ``LAYOUT`` (the expected files, in words), ``detect``, ``scan``, ``find_classes`` and
``load``, and one line in :data:`LAYOUTS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from d2ed2q.data.dataset import Dataset
from d2ed2q.data.datasets import (
    chase_db1,
    decathlon,
    drive,
    folder,
    glas,
    glas_b,
    isbi2012,
    kvasir_seg,
    nnunet,
    stare,
)
from d2ed2q.data.datasets.scan import Scan
from d2ed2q.data.masks import Classes
from d2ed2q.errors import ConfigError, DataError

__all__ = ["LAYOUTS", "Layout", "dataset_name", "find_layout", "open_dataset"]


class Layout(Protocol):
    """What a module of this package offers."""

    LAYOUT: str

    def detect(self, root: Path) -> bool:
        """Whether a folder has this layout."""

    def scan(self, root: Path) -> Scan:
        """Matches files to cases without opening them."""

    def find_classes(self, values: Mapping[Path, Collection[int]]) -> Classes:
        """What the values that occur in the masks mean, given all of them."""

    def load(self, root: Path) -> Dataset:
        """Opens the dataset."""


# In the order in which they are tried: the plain folder accepts most, so it comes last.
LAYOUTS: Mapping[str, Layout] = {
    "drive": drive,
    "chase_db1": chase_db1,
    "stare": stare,
    "glas": glas,
    "glas_b": glas_b,
    "isbi2012": isbi2012,
    "kvasir_seg": kvasir_seg,
    "decathlon": decathlon,
    "nnunet": nnunet,
    "folder": folder,
}
# Layouts that one's own images may have as well: ``auto`` takes them only where the folder's name has this in it.
_NAMED = {"kvasir_seg": "kvasir", "isbi2012": "isbi"}


def open_dataset(root: Path, name: str = "auto") -> Dataset:
    """Opens a dataset.

    Args:
        root: its folder.
        name: one of :data:`LAYOUTS`, or ``auto`` to find out; case, ``-`` and ``_`` do not matter.

    Raises:
        ConfigError: there is no layout of this name.
        DataError: the folder is missing or empty, has another layout, or its files do not match.
    """
    return LAYOUTS[find_layout(root, name)].load(Path(root))


def find_layout(root: Path, name: str = "auto") -> str:
    """The key in :data:`LAYOUTS` of a folder's layout.

    Raises:
        ConfigError: there is no layout of this name.
        DataError: the folder is missing or empty, or has another layout.
    """
    root = Path(root)
    chosen = dataset_name(name)
    candidates = LAYOUTS if chosen == "auto" else {chosen: LAYOUTS[chosen]}
    own_first = sorted(candidates, key=lambda key: key != "folder")  # what images of one's own are laid out in
    expected = "; or ".join(f"{key}: {candidates[key].LAYOUT}" for key in own_first)
    if root.is_file():
        raise DataError(f"{root} is a file; pass the folder of the whole dataset")
    if not root.is_dir():
        raise DataError(f"there is no dataset folder {root}; check the path")
    if not any(root.iterdir()):
        raise DataError(f"the dataset folder {root} is empty; expected {expected}")
    own_name = _plain(root.resolve().name)
    for key, layout in candidates.items():
        if layout.detect(root) and (chosen != "auto" or _NAMED.get(key, "") in own_name):
            return key
    raise DataError(f"{root} is laid out in another way; expected {expected}")


def dataset_name(name: str) -> str:
    """The layout's own spelling of a name.

    Raises:
        ConfigError: there is no layout of this name.
    """
    plain = {_plain(key): key for key in ("auto", *LAYOUTS)}
    if _plain(name) in plain:
        return plain[_plain(name)]
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    raise ConfigError(f"unknown dataset {name!r}; {hint}known are auto, {', '.join(LAYOUTS)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
