"""Small NIfTI files and datasets of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (9, 11, 7)


def affine_of(codes: str, spacing: Sequence[float], origin: Sequence[float] = (5.0, -3.0, 11.0)) -> np.ndarray:
    """An affine whose axes point to, say, left, posterior, superior (``LPS``)."""
    orientation = nibabel.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, flip) in enumerate(orientation):
        affine[int(world), axis] = flip * spacing[axis]
    affine[:3, 3] = origin
    return affine


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None, kind: Any = nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(values, np.diag((1.0, 2.0, 3.0, 1.0)) if affine is None else affine), path)
    return path


def scan(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 900, shape).astype(np.int16)


def label(highest: int = 2, shape: Sequence[int] = SHAPE) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    for number in range(1, highest + 1):
        values[2 * number - 1 : 2 * number + 1, 2:6, 1:5] = number
    return values


def describe(root: Path, **content: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def write_decathlon(root: Path, n: int = 4, modality: str = "MRI", **changes: Any) -> Path:
    names = [f"case_{number}" for number in range(n)]
    for number, name in enumerate(names):
        write(root / "imagesTr" / f"{name}.nii.gz", scan(number))
        write(root / "labelsTr" / f"{name}.nii.gz", label())
    content = {
        "modality": {"0": modality},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
    describe(root, **(content | changes))
    return root


def write_nnunet(root: Path, n: int = 3, channels: int = 2, **changes: Any) -> Path:
    for number in range(n):
        for channel in range(channels):
            write(root / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", scan(10 * number + channel))
        write(root / "labelsTr" / f"case_{number}.nii.gz", label())
    content = {
        "channel_names": {str(channel): f"T{channel}" for channel in range(channels)},
        "labels": {"background": 0, "front": 1, "back": 2},
        "numTraining": n,
        "file_ending": ".nii.gz",
    }
    describe(root, **(content | changes))
    return root
