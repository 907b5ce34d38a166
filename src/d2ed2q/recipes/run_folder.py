"""The run folder: everything that one training leaves behind, and how to get a model back out of it.

::

    RUN/
    ├── config.toml                   the resolved settings
    ├── plan.toml                     of a run with a budget: why the settings are what they are
    ├── environment.json              versions, machine, command, date, commit; again of each time it went on
    ├── data.json                     split, patients and SHA-256 of every case
    ├── checkpoint.safetensors        to resume
    ├── metrics.jsonl, tensorboard/   figures while training
    ├── full_precision.safetensors    weights before quantization
    ├── model.safetensors             the finished weights, few-bit if quantized
    ├── codebooks.safetensors         for every quantized tensor its levels and, where they are integers × scale, both
    ├── teacher.json                  of a student: which weights taught it, and which images they had seen
    ├── model.json                    what the weights are: architecture, bits, codebook, threshold, SHA-256
    ├── evaluation.json, report.html  figures and the page that shows them
    ├── example.png                   the median image, its truth, its prediction and its uncertainty
    └── search.json, search.png       accuracy at other numbers of bits, and the picture of it
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from d2ed2q.ensemble import DeepEnsemble, view_names
from d2ed2q.errors import CheckpointError, RunBusyError, RunFolderError, StorageError
from d2ed2q.files import hold, sha256_of, unwritable, write_text
from d2ed2q.quantization import Codebook
from d2ed2q.recipes.card import FORMAT, ModelCard
from d2ed2q.recipes.memory_layout import in_channels_last
from d2ed2q.training import load_tensors, save_tensors

__all__ = ["ModelCard", "RunFolder"]

# What `atomic_path` calls its temporary files, and safetensors its own.
_LEFTOVER = re.compile(
    r"\.lock|\.tmp\w{6}|\.(config|plan|environment|data|checkpoint|metrics|full_precision|model|codebooks|evaluation|report|search|teacher)-\w{8}\.\w+"
)


_KEYS = {
    "data.json": ("dataset", "root", "classes", "splits", "patients", "sha256", "image_sha256"),
    "environment.json": ("date", "packages"),
    "evaluation.json": ("dataset", "images", "tta", "prediction", "scopes", "diversity", "full_precision"),
    "teacher.json": ("sha256", "seen"),
}


class RunFolder:
    """Paths of a run folder, and reading and writing of its parts.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.plan = path / "plan.toml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.full_precision = path / "full_precision.safetensors"
        self.model = path / "model.safetensors"
        self.teacher = path / "teacher.json"
        self.codebooks = path / "codebooks.safetensors"
        self.card = path / "model.json"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"
        self.example = path / "example.png"
        self.search = path / "search.json"
        self.search_picture = path / "search.png"

    def require_free(self) -> None:
        """Checks that a new run can be written here.

        Raises:
            RunFolderError: the folder exists and is not empty.
        """
        if self.path.exists() and (
            not self.path.is_dir() or any(not _is_leftover(file) for file in self.path.iterdir())
        ):
            raise RunFolderError(
                f"the run folder {self.path} exists; resume it with --resume, or choose another with --out"
            )

    def require_writable(self) -> None:
        """Checks that files can be written here, before hours of work have nowhere to go.

        Raises:
            StorageError: they cannot.
        """
        if (obstacle := unwritable(self.path)) is not None:
            raise StorageError(f"cannot write into {obstacle}; check its permissions, or choose another --out")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one training; the system lets go of it when the process ends, however it ends.

        Raises:
            RunFolderError: another process trains here.
            StorageError: the folder cannot be written to.
        """
        with hold(self.path / ".lock") as free:
            if not free:
                raise RunBusyError(f"another process is training in {self.path}; wait for it, or stop it")
            yield

    def remove_leftovers(self) -> None:
        """Removes temporary files of writes that a kill cut short."""
        for file in self.path.iterdir():
            if _is_leftover(file) and file.name != ".lock":
                file.unlink(missing_ok=True)

    def require_resumable(self) -> None:
        """Checks that a run was begun here, and has not finished.

        Raises:
            RunFolderError: there is nothing to resume.
        """
        if not self.config.is_file():
            raise RunFolderError(f"there is no run to resume in {self.path}: start it without --resume")
        if self.card.exists():
            raise RunFolderError(f"the training in {self.path} has finished; there is nothing to resume")

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Writes one of the folder's JSON files, atomically."""
        write_text(path, json.dumps(content, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Reads one of the folder's JSON files.

        Raises:
            RunFolderError: it is missing or cut off, or lacks a part.
        """
        if not self.path.is_dir():
            raise RunFolderError(
                f"there is no run folder {self.path}; train one with: d2ed2q train --data DATA --out {self.path}"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if not self.config.exists():
                raise RunFolderError(
                    f"{self.path} is no run folder: it has no {self.config.name}; give one that a training wrote"
                ) from error
            raise RunFolderError(
                f"{path} is missing: the training in {self.path} has not finished; go on with d2ed2q train and --resume"
            ) from error
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}); restore it from a copy") from error
        if not isinstance(content, dict):
            raise RunFolderError(f"{path} does not hold a JSON object; restore it from a copy")
        lacking = [key for key in _KEYS.get(path.name, ()) if key not in content]
        if lacking:
            raise RunFolderError(f"{path} lacks {', '.join(lacking)}; restore it from a copy")
        if path.name == self.data.name and not (
            isinstance(content["splits"], dict) and {"train", "validation"} <= content["splits"].keys()
        ):
            raise RunFolderError(f"{path} does not say which images are for what; restore it from a copy")
        return content

    def save_weights(self, path: Path, ensemble: DeepEnsemble) -> None:
        """Writes an ensemble's weights."""
        save_tensors(path, ensemble.state_dict())

    def save_codebooks(self, codebooks: Mapping[str, Codebook]) -> None:
        """Writes the codebooks: ``name/levels`` of each tensor, and ``name/integers`` and ``name/scale`` if there are.

        Scales are kept because they cannot be read off the weights: a channel's largest weight may have moved, before
        it was quantized, from the level that it had set.
        """
        tensors = {
            f"{name}/{part}": tensor
            for name, book in codebooks.items()
            for part, tensor in (("levels", book.levels), ("integers", book.integers), ("scale", book.scale))
            if tensor is not None
        }
        save_tensors(self.codebooks, tensors)

    def load_steps(self) -> dict[str, torch.Tensor]:
        """Of every quantized tensor the step that its levels are multiples of, where they are (:func:`int8_weight`).

        Returns:
            dict: by name a scale for each output channel (``geometric``), or the smallest positive level.

        Raises:
            CheckpointError: the codebooks are missing or cut off.
        """
        tensors, _ = load_tensors(self.codebooks)
        steps = {}
        for name in {key.rpartition("/")[0] for key in tensors}:
            levels = tensors[f"{name}/levels"]
            positive = levels[levels > 0]
            if f"{name}/scale" in tensors:
                steps[name] = tensors[f"{name}/scale"]
            elif len(positive):
                steps[name] = positive.min()
        return steps

    def save_card(self, card: ModelCard) -> None:
        """Writes ``model.json``; the last thing a training does."""
        self.write_json(self.card, asdict(card))

    def read_card(self) -> ModelCard:
        """Reads ``model.json``.

        Raises:
            RunFolderError: it is missing.
            CheckpointError: it is not a model's description, or of a newer version.
        """
        content = self.read_json(self.card)
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise CheckpointError(f"{self.card} was written by a newer version of d2ed2q; upgrade to read it")
        try:
            card = msgspec.convert(content, ModelCard)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{self.card} is not a model's description: {error}") from error
        views = set(view_names(card.learners))
        if card.prediction not in views or set(card.thresholds) != views:
            raise CheckpointError(f"{self.card} does not fit an ensemble of {card.learners} base learners")
        if card.bits is not None and len(card.bits) != card.learners + 1:
            raise CheckpointError(f"{self.card} has bits for {len(card.bits)} learners, not for {card.learners + 1}")
        return card

    def load(self, full_precision: bool = False) -> DeepEnsemble:
        """Builds the run's ensemble and loads its weights.

        Args:
            full_precision: the weights before quantization instead of the finished ones.

        Raises:
            RunFolderError: the run has not finished.
            CheckpointError: the weights are cut off, changed since they were saved, or of another architecture.
        """
        card = self.read_card()
        path = self.full_precision if full_precision else self.model
        tensors, _ = load_tensors(path)
        if sha256_of(path) != card.sha256.get(path.name):
            raise CheckpointError(f"{path} is not the file that was saved: its SHA-256 is not the one in {self.card}")
        ensemble = card.build()
        load_into(ensemble, tensors, path)
        return in_channels_last(ensemble.eval(), card.dims)


def _is_leftover(file: Path) -> bool:
    return _LEFTOVER.fullmatch(file.name) is not None


def load_into(ensemble: DeepEnsemble, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads weights into an ensemble of the same architecture.

    Raises:
        CheckpointError: a tensor is missing, of another shape or unknown; the first one is named.
    """
    own = ensemble.state_dict()
    for name in sorted(set(own) ^ set(tensors)):
        lacking = "lacks" if name in own else "has an unknown"
        raise CheckpointError(f"{path} is of another architecture: it {lacking} tensor {name}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointError(
                f"{path} is of another architecture: {name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            )
    ensemble.load_state_dict(dict(tensors))
