"""A nested state (dictionaries, lists, tensors, plain values) in one safetensors file, without pickle.

Tensors become tensors of the file; everything else is JSON in the file's header, where a tensor's place is taken by
``{"tensor": name}``. Dictionary keys may be strings or integers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from d2ed2q.errors import CheckpointError, StorageError
from d2ed2q.files import atomic_path

__all__ = ["Stateful", "clone_state", "load_state", "load_tensors", "save_state", "save_tensors"]

_HEADER, _DIGEST = "state", "sha256"


class Stateful(Protocol):
    """Anything that is saved and resumed with a run."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...  # noqa: D102


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if path in tensors:  # as of the keys 1 and "1"
            raise ValueError(f"two tensors of the state have the name {path}")
        tensors[path] = value.detach().contiguous().cpu()
        return {"tensor": path}
    if isinstance(value, Mapping):
        # Pairs rather than an object, because an optimizer's state has integer keys.
        return {"map": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]}
    return {"value": value}


def _unpack(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind == "list":
        return [_unpack(item, tensors) for item in content]
    return content


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Writes tensors and text to one safetensors file, atomically.

    Raises:
        StorageError: the file could not be written; what ``path`` held before is untouched.
    """
    with atomic_path(path) as temporary:
        # safetensors refuses tensors that share memory (tied weights); a copy of each costs little here.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            safetensors.torch.save_file(own, temporary, metadata=dict(header or {}))
        except safetensors.SafetensorError as error:
            # The library hides the operating system's error number in its text.
            full = "No space left" in str(error) or "File too large" in str(error)
            remedy = "the disk is full; free some space and run the same command again" if full else str(error)
            raise StorageError(f"cannot write {path}: {remedy}") from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file.

    Returns:
        tuple: the tensors by name, and the header's text by key.

    Raises:
        CheckpointError: the file is missing, cut off or not a safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weights file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is cut off or not a weights file ({error}); restore it from a copy") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a nested state to one file, atomically.

    Raises:
        StorageError: the file could not be written; what ``path`` held before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "", tensors)
    save_tensors(path, tensors, {_HEADER: json.dumps(packed), _DIGEST: _digest(tensors)})


def load_state(path: Path) -> dict[str, Any]:
    """Reads a nested state that :func:`save_state` wrote.

    Raises:
        CheckpointError: the file is missing, cut off, changed, or was not written by :func:`save_state`.
    """
    tensors, header = load_tensors(path)
    try:
        state = _unpack(json.loads(header[_HEADER]), tensors)
        damaged = header[_DIGEST] != _digest(tensors)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a run, or was tampered with") from error
    if damaged:
        raise CheckpointError(
            f"{path} was changed since it was written: its SHA-256 is another; restore it from a copy"
        )
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of a run")
    return state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, on the CPU and contiguous, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def clone_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state on the CPU, untouched by further training."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
