"""The exceptions that d2ed2q raises on purpose.

::

    D2ED2QError
    ├── ConfigError          a setting is unknown, of the wrong type or out of range
    ├── DataError            an image, a mask or a dataset folder cannot be used
    ├── CheckpointError      a weights file is cut off, tampered with or of another architecture
    ├── BundleError          a bundle (.d2q) is cut off, changed, hostile or of a newer version
    ├── AccuracyError        a model loses more accuracy by quantization than is allowed
    ├── RunFolderError       a run or output folder is missing, taken or incomplete
    ├── StorageError         a file could not be written (disk full, no permission)
    ├── MissingExtraError    an optional dependency is not installed
    ├── TrainingError        training diverged
    └── Interrupted          the user stopped a run that can be resumed (exit code 130)

Every message names the thing that is wrong and the remedy. The command line prints it as one line and ends with exit
code 2 (:attr:`D2ED2QError.exit_code`); a caller of the library catches :class:`D2ED2QError`.
"""

from __future__ import annotations

__all__ = [
    "AccuracyError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "D2ED2QError",
    "DataError",
    "Interrupted",
    "MissingExtraError",
    "RunFolderError",
    "StorageError",
    "TrainingError",
    "first_line",
    "missing_extra",
    "out_of_memory",
]


class D2ED2QError(Exception):
    """Base of every error that d2ed2q raises on purpose."""

    exit_code = 2


class ConfigError(D2ED2QError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(D2ED2QError):
    """An image, a mask or a dataset folder cannot be used."""


class CheckpointError(D2ED2QError):
    """A weights file is cut off, tampered with or belongs to another architecture."""


class BundleError(D2ED2QError):
    """A bundle is cut off, changed, hostile, of a newer version, or no bundle at all."""


class AccuracyError(D2ED2QError):
    """A model loses more accuracy by quantization than is allowed; the message names the remedy."""


class RunFolderError(D2ED2QError):
    """A run or output folder is missing, already taken or incomplete."""


class RunBusyError(RunFolderError):
    """Another process is at work in a run folder."""


class StorageError(D2ED2QError):
    """A file could not be written: the disk is full or the folder cannot be written to."""


class MissingExtraError(D2ED2QError):
    """An optional dependency is not installed; the message names the pip command that brings it."""


class TrainingError(D2ED2QError):
    """Training diverged: the loss is NaN or infinite."""


class Interrupted(D2ED2QError):
    """The user stopped a run; what was done is saved and can be resumed."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing; not more than 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


_NO_MEMORY = (
    *("out of memory", "not enough memory", "memoryerror", "bad_alloc", "bad allocation", "alloc_failed"),
    *("can't allocate", "cannot allocate", "could not allocate", "failed to allocate", "unable to allocate"),
)
"""What PyTorch, its libraries, NumPy and the engines say; much else has the word memory in it."""


def out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or what it said, is that memory could not be had, for which few have a class of their own."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


_EXTRAS = {
    "train": (
        *("jinja2", "lightning_fabric", "markupsafe", "matplotlib", "monai", "safetensors", "skimage", "tensorboard"),
        "torch",
    ),
    "serve": ("aiomqtt", "fastapi", "highdicom", "httpx2", "prometheus_client", "pydicom", "pynetdicom", "uvicorn"),
    "sweep": ("optuna",),
    "runtime": ("onnxruntime", "openvino"),
    "export": ("nncf", "onnx", "onnxscript"),
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Of a failed import, which extra brings the package; None where it is none of ours."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return MissingExtraError(f"this needs {package}, not installed here; run: pip install 'd2ed2q[{extra}]'")
    return None
