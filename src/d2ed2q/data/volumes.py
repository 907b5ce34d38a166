"""NIfTI volumes: reading them in one orientation, and writing results back into the grid they came from."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.errors import DataError
from d2ed2q.files import atomic_path

__all__ = ["Volume", "is_volume", "list_volumes", "read_volume", "require_same_grid", "volume_name", "write_volume"]

SUFFIXES = (".nii.gz", ".nii")
_MOST_VOXELS = 2**31


@dataclass(frozen=True)
class Volume:
    """A volume in the orientation right–anterior–superior, whatever the order of axes in its file.

    Attributes:
        path: the file.
        values: ``C×X×Y×Z``, or ``C×X×Y`` of a file with a single slice; numbers as stored, scaling applied.
        spacing: millimetres along each spatial axis of ``values``.
        affine: 4×4, from voxel indices of the file to millimetres, as in the file.
        image: nibabel's own object, for writing.
    """

    path: Path
    values: np.ndarray
    spacing: tuple[float, ...]
    affine: np.ndarray
    image: Any = field(repr=False)


def is_volume(path: Path) -> bool:
    """Whether a file's name is a NIfTI file's."""
    return path.name.lower().endswith(SUFFIXES)


def volume_name(path: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    suffix = next(suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]


def list_volumes(folder: Path) -> tuple[Path, ...]:
    """The NIfTI files of a folder, sorted by name; hidden files are left out.

    Raises:
        DataError: there is no such folder.
    """
    try:
        return tuple(sorted(path for path in folder.iterdir() if is_volume(path) and not path.name.startswith(".")))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}; check its path") from error


def read_volume(path: Path) -> Volume:
    """Reads a NIfTI file; a fourth dimension is taken for channels.

    Raises:
        DataError: the file is missing, damaged or too large, has a singular affine, no positive spacing, an empty or
            fifth dimension, or holds NaN or infinite values.
    """
    import nibabel  # slow to import, and pictures do not need it
    from nibabel.filebasedimages import ImageFileError

    if not path.is_file():
        raise DataError(f"there is no volume {path}; check the path")
    try:
        image = nibabel.load(path)
        shape = tuple(int(extent) for extent in image.shape)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged or is no NIfTI file ({_first(error)}); restore the original") from error
    except Exception as error:  # a damaged header raises nearly anything
        raise DataError(f"{path} has a damaged header ({_first(error)}); restore the original") from error
    while len(shape) > 3 and shape[-1] == 1 and len(shape) != 4:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise DataError(f"{path} has the dimensions {'×'.join(map(str, shape))}; expected a volume, or one per channel")
    if np.prod(shape, dtype=np.float64) > _MOST_VOXELS:
        raise DataError(f"{path} claims {'×'.join(map(str, shape))} voxels, which is too much; check its header")
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path} has a singular affine: its voxels have no volume in space; repair its header")
    try:
        values = np.asanyarray(image.dataobj).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is cut off or damaged ({_first(error)}); restore the original") from error
    if values.dtype.kind not in "buif":
        raise DataError(f"{path} holds {values.dtype} values; convert it to one number a voxel")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path} holds NaN or infinite values; replace them, for instance by the background's value")
    if values.ndim < 4:
        values = values.reshape((*shape, *(1,) * (3 - len(shape)), 1))
    turned = nibabel.orientations.apply_orientation(values, nibabel.io_orientation(affine))
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))[_order(nibabel.io_orientation(affine))]
    channels_first = np.moveaxis(turned, -1, 0)
    if channels_first.shape[-1] == 1:
        channels_first, spacing = channels_first[..., 0], spacing[:2]
    return Volume(path, np.ascontiguousarray(channels_first), tuple(float(s) for s in spacing), affine, image)


def write_volume(path: Path, values: np.ndarray, like: Volume) -> None:
    """Writes values into the grid of another volume: same shape, affine and kind of NIfTI, in the file's orientation.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; written atomically.
        values: ``X×Y×Z`` (or ``X×Y``) as ``like.values`` has it, without channels; kept in their own type.
        like: what they belong to.

    Raises:
        DataError: the shape is another one.
        StorageError: the file could not be written.
    """
    import nibabel

    if values.shape != like.values.shape[1:]:
        raise DataError(f"cannot write {path}: {values.shape} voxels do not fit {like.path} of {like.values.shape[1:]}")
    if values.ndim == 2:
        values = values[..., None]
    there = nibabel.io_orientation(like.affine)
    canonical = nibabel.orientations.axcodes2ornt("RAS")
    back = nibabel.orientations.ornt_transform(canonical, there)
    turned = nibabel.orientations.apply_orientation(values, back)
    header = like.image.header.copy()
    header.set_data_dtype(turned.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    result = type(like.image)(turned, like.affine, header)
    with atomic_path(path) as temporary:
        # nibabel decides by the name whether to compress; the temporary name keeps only the last suffix.
        named = temporary.with_name(temporary.name.replace(temporary.suffix, "")).with_suffix(
            ".nii.gz" if path.name.endswith(".gz") else ".nii"
        )
        try:
            nibabel.save(result, named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def require_same_grid(image: Volume, label: Volume) -> None:
    """Checks that two volumes lie on one grid.

    Raises:
        DataError: shape, spacing or place differ.
    """
    if image.values.shape[1:] != label.values.shape[1:]:
        sizes = ["×".join(map(str, volume.values.shape[1:])) for volume in (label, image)]
        raise DataError(f"{label.path} has {sizes[0]} voxels, but its image {image.path} has {sizes[1]}; resample it")
    if not np.allclose(image.spacing, label.spacing, rtol=1e-3, atol=0):
        steps = ["×".join(f"{step:g}" for step in volume.spacing) for volume in (label, image)]
        raise DataError(
            f"{label.path} has voxels of {steps[0]} mm, but its image {image.path} has {steps[1]} mm; resample it"
        )
    corner = np.array([*(extent - 1 for extent in (*image.image.shape, 1, 1)[:3]), 1.0])
    for point in (np.array([0.0, 0, 0, 1]), corner):
        if np.abs((image.affine - label.affine) @ point)[:3].max() > max(image.spacing):
            raise DataError(f"{label.path} lies elsewhere in space than its image {image.path}; register or resave it")


def _order(orientation: np.ndarray) -> np.ndarray:
    """Of each canonical axis, which of the file's axes it is."""
    order: np.ndarray = np.argsort(orientation[:, 0])
    return order


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
