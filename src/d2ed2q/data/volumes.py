"""NIfTI volumes: reading them in one orientation, and writing results back into the grid they came from."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.errors import DataError
from d2ed2q.files import atomic_path

__all__ = ["Volume", "is_volume", "list_volumes", "read_volume", "require_same_grid", "volume_name", "write_volume"]

SUFFIXES = (".nii.gz", ".nii")
_MOST_VOXELS = 2**31
_DEFLATE_LIMIT = 1032  # no deflate stream grows by more than this
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_SINGULAR = 1e-6  # of a box of the same edges


@dataclass(frozen=True)
class Volume:
    """A volume as a stack of axial slices, whatever the order of axes in its file.

    Attributes:
        path: the file.
        values: ``C×D×H×W``, or ``C×H×W`` of a file with a single slice; indices grow along D to superior, along H to
            anterior, along W to right. Numbers as stored, scaling applied.
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
        image = nibabel.load(path, mmap=False)  # a map of a file that changes can crash the process
        shape = tuple(int(extent) for extent in image.shape)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged or is no NIfTI file ({_first(error)}); restore the original") from error
    except Exception as error:  # a damaged header raises nearly anything
        raise DataError(f"{path} has a damaged header ({_first(error)}); restore the original") from error
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not isinstance(image, nibabel.Nifti1Pair):  # CIFTI, of surfaces, has the same ending
        raise DataError(f"{path} is a {type(image).__name__}, which has no voxels in space; export it as NIfTI")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise DataError(f"{path} has the dimensions {'×'.join(map(str, shape))}; expected a volume, or one per channel")
    if np.prod(shape, dtype=np.float64) > _MOST_VOXELS:
        raise DataError(f"{path} claims {'×'.join(map(str, shape))} voxels, which is too much; check its header")
    packed = path.name.lower().endswith(".gz")
    claimed = int(image.dataobj.offset + np.prod(shape, dtype=np.float64) * image.get_data_dtype().itemsize)
    if claimed > (_DEFLATE_LIMIT if packed else 1) * path.stat().st_size:
        raise DataError(f"{path} claims {'×'.join(map(str, shape))} voxels, but is cut off; restore the original")
    affine = np.asarray(image.affine, dtype=np.float64)
    edges = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= _SINGULAR * edges.prod():
        raise DataError(f"{path} has a singular affine: its voxels have no volume in space; repair its header")
    try:
        whole = type(image).from_bytes(_unpacked(path, claimed)) if packed else image
        values = np.asanyarray(whole.dataobj).reshape(shape)
    except Exception as error:  # as above
        raise DataError(f"{path} is cut off or damaged ({_first(error)}); restore the original") from error
    if values.dtype.kind not in "buif":
        raise DataError(f"{path} holds {values.dtype} values; convert it to one number a voxel")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path} holds NaN or infinite values; replace them, for instance by the background's value")
    if values.ndim < 4:
        values = values.reshape((*shape, *(1,) * (3 - len(shape)), 1))
    orientation = nibabel.io_orientation(affine)
    turned = nibabel.orientations.apply_orientation(values, orientation)
    spacing = _MILLIMETRES.get(_unit(image), 1.0) * edges[np.argsort(orientation[:, 0])][::-1]
    channels_first = turned.T
    if channels_first.shape[1] == 1:
        channels_first, spacing = channels_first[:, 0], spacing[1:]
    return Volume(path, np.ascontiguousarray(channels_first), tuple(float(s) for s in spacing), affine, image)


def _unit(image: Any) -> str:
    """The unit of the affine as the header tells it; ``unknown``, as many files have it, is taken for millimetres."""
    try:
        return str(image.header.get_xyzt_units()[0])
    except (AttributeError, KeyError):  # no NIfTI header, or a code that means nothing
        return "unknown"


def _unpacked(path: Path, size: int) -> bytes:
    """What a gzip file holds; its checksum is read too, which nibabel, content with what the header asks for, does not.

    Raises:
        OSError: the checksum is another.
        EOFError: the file is cut off.
        zlib.error: it is damaged.
    """
    with gzip.open(path) as file:
        content = file.read(size)
        file.read(1)
    return content


def write_volume(path: Path, values: np.ndarray, like: Volume) -> None:
    """Writes values into the grid of another volume: same shape, affine and kind of NIfTI, in the file's orientation.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; written atomically.
        values: ``D×H×W`` or ``H×W`` as ``like.values`` has it, without channels; kept in their own type.
        like: what they belong to.

    Raises:
        DataError: the shape is another one.
        StorageError: the file could not be written.
    """
    import nibabel

    if values.shape != like.values.shape[1:]:
        raise DataError(f"cannot write {path}: {values.shape} voxels do not fit {like.path} of {like.values.shape[1:]}")
    values = values.reshape((*(1,) * (3 - values.ndim), *values.shape)).T
    there = nibabel.io_orientation(like.affine)
    canonical = nibabel.orientations.axcodes2ornt("RAS")
    back = nibabel.orientations.ornt_transform(canonical, there)
    turned = nibabel.orientations.apply_orientation(values, back)
    header = like.image.header.copy()
    header.set_data_dtype(turned.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    # A single slice may be stored with two axes or with three.
    content = type(like.image)(turned.reshape(like.image.shape[:3]), like.affine, header).to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if path.name.lower().endswith(".gz") else content)


def require_same_grid(image: Volume, label: Volume) -> None:
    """Checks that two volumes lie on one grid.

    Raises:
        DataError: shape, spacing or place differ.
    """
    if image.values.shape[1:] != label.values.shape[1:]:
        sizes = ["×".join(map(str, volume.values.shape[:0:-1])) for volume in (label, image)]
        raise DataError(f"{label.path} has {sizes[0]} voxels, but its image {image.path} has {sizes[1]}; resample it")
    if not np.allclose(image.spacing, label.spacing, rtol=1e-3, atol=0):
        steps = ["×".join(f"{step:g}" for step in volume.spacing[::-1]) for volume in (label, image)]
        raise DataError(
            f"{label.path} has voxels of {steps[0]} mm, but its image {image.path} has {steps[1]} mm; resample it"
        )
    affines = [_canonical_affine(volume) for volume in (image, label)]
    away = np.linalg.solve(affines[0], affines[1]) - np.eye(4)  # in voxels of the image
    last = [extent - 1 for extent in (*image.values.shape[:0:-1], 1)[:3]]
    corners = np.array([(*corner, 1) for corner in product(*((0, index) for index in last))])
    if np.abs(corners @ away.T).max() > 0.5:
        raise DataError(f"{label.path} lies elsewhere in space than its image {image.path}; register or resave it")


def _canonical_affine(volume: Volume) -> np.ndarray:
    """From indices along right, anterior and superior, whatever the file's axes are, to millimetres."""
    import nibabel

    stored = (*volume.image.shape, 1)[:3]
    orientation = nibabel.io_orientation(volume.affine)
    affine: np.ndarray = volume.affine @ nibabel.orientations.inv_ornt_aff(orientation, stored)
    return affine


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
