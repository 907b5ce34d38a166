"""The paper's recipe under the paper's own command lines, for ``train.py`` and ``eval.py`` at the repository's root."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from d2ed2q.backbones import backbone_names
from d2ed2q.data import dataset_name, open_dataset
from d2ed2q.errors import CheckpointError, ConfigError, StorageError, first_line
from d2ed2q.files import atomic_path
from d2ed2q.recipes.memory_layout import in_channels_last
from d2ed2q.recipes.run_folder import ModelCard, RunFolder, load_into
from d2ed2q.recipes.scoring import score
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["evaluate_paper", "train_paper", "weights_name"]

_RESIZE = (448, 448)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see --help")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="CE-Net", help=f"one of {', '.join(backbone_names())}")
    parser.add_argument("--dataset", default="DRIVE", help="layout of the data: DRIVE, CHASE_DB1 or folder")
    parser.add_argument("--image-path", type=Path, help="the data's place; default ./dataset/DATASET")
    parser.add_argument("--size", type=int, default=_RESIZE[0], help="images are resized to SIZE × SIZE")
    parser.add_argument("--n-models", type=int, default=3, help="number of base learners")


def weights_name(dataset: str) -> str:
    """Name of the weights file, in the folder that the command was called from."""
    return f"D2ED2Q_{dataset}.pth"


def _data_folder(options: argparse.Namespace) -> Path:
    if options.size < 8:
        raise ConfigError(f"--size must be at least 8, got {options.size}")
    dataset_name(options.dataset)
    folder: Path = options.image_path or Path("dataset") / options.dataset
    if not folder.is_dir():
        raise ConfigError(
            f"there is no dataset folder {folder}; put {options.dataset} there, or pass its place with --image-path"
        )
    return folder


def train_paper(arguments: Sequence[str] | None = None) -> Path:
    """Trains with the released defaults and writes the state dict ``D2ED2Q_<dataset>.pth`` into the current folder.

    Adam at 2·10⁻⁴ halved on a plateau, batch 4, 448×448, released diversity form, five bits, ``log`` codebook,
    30 + 30 + 20 + 20 %.

    Returns:
        Path: the weights file.

    Raises:
        D2ED2QError: whatever is wrong with arguments, data or disk, in one sentence.
    """
    parser = _Parser(prog="train.py", description=train_paper.__doc__)
    _common(parser)
    parser.add_argument("--alpha", type=float, default=0.005, help="weight of the diversity term")
    parser.add_argument("--epoch", type=int, default=1200, help="epochs in full precision")
    parser.add_argument("--epochQ", type=int, default=300, help="epochs after each quantization step")
    parser.add_argument("--batchsize", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--Q", type=int, nargs="+", default=[5], help="bits: one for all, or meta learner first")
    parser.add_argument("--codebook", default="log")
    parser.add_argument("--out", type=Path, help="run folder; default runs/paper-DATASET")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--imagenet-weights", type=Path)
    options = parser.parse_args(arguments)
    out = options.out or Path("runs") / f"paper-{options.dataset}"
    run = RunFolder(out)
    if not (options.resume and run.card.exists()):  # else only the state dict is missing
        run = train(_settings(options, out))
    path = Path(weights_name(options.dataset))
    with atomic_path(path) as temporary:
        try:
            torch.save(run.load().state_dict(), temporary)
        except RuntimeError as error:  # how torch tells of a full disk
            raise StorageError(
                f"cannot write {path}: {first_line(error)}; free some space, and go on with --resume"
            ) from error
    return path


def _settings(options: argparse.Namespace, out: Path) -> TrainSettings:
    return TrainSettings(
        data=_data_folder(options),
        out=out,
        dataset=options.dataset,
        backbone=options.backbone,
        imagenet_weights=options.imagenet_weights,
        learners=options.n_models,
        epochs=options.epoch,
        epochs_q=options.epochQ,
        bits=tuple(options.Q),
        codebook=options.codebook,
        alpha=options.alpha,
        diversity="released",
        loss="bce",
        batch_size=options.batchsize,
        resize=(options.size, options.size),
        lr=options.lr,
        lr_q=options.lr,
        optimizer="adam",
        weight_decay=0.0,
        schedule="plateau",
        clip=0.0,
        tta="dihedral",
        prediction="ensemble",  # what the released code scores unless told otherwise
        clean=False,
        seed=options.seed,
        resume=options.resume,
    )


def evaluate_paper(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Scores a ``.pth`` state dict of :func:`train_paper` on the test images, with 8-fold test-time augmentation.

    Returns:
        dict: ``prediction``, ``scopes`` and ``diversity``, as in ``evaluation.json``, and ``images``.

    Raises:
        D2ED2QError: whatever is wrong with arguments, weights or data, in one sentence.
    """
    parser = _Parser(prog="eval.py", description=evaluate_paper.__doc__)
    parser.add_argument("--model-path", type=Path, required=True, help="the weights file, D2ED2Q_DRIVE.pth")
    _common(parser)
    options = parser.parse_args(arguments)
    state = _load_pth(options.model_path)
    dataset = open_dataset(_data_folder(options), options.dataset)
    card = ModelCard(
        backbone=options.backbone,
        learners=options.n_models,
        in_channels=dataset.channels,
        classes=tuple(dataset.classes),
        resize=(options.size, options.size),
        tta="dihedral",
        tubular=dataset.tubular,
        region="whole",
        bits=None,
        codebook=None,
        prediction="ensemble",
        thresholds={},
        validation_dice={},
        training_seconds=0.0,
        sha256={},
    )
    ensemble = card.build()
    load_into(ensemble, state, options.model_path)
    ensemble = in_channels_last(ensemble.eval(), card.dims)
    cases = [case for case in dataset.test if case.labelled]
    if not cases:
        raise ConfigError(f"{dataset.root} has no test images with masks to score against")
    return {"images": [case.id for case in cases], **score(ensemble, card, dataset, cases, card.tta).figures}


def _load_pth(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in Path().glob("*.pth")], n=1)
        hint = f"did you mean {near[0]}?" if near else "train it with train.py"
        raise CheckpointError(f"there is no weights file {path}; {hint}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a cut-off or hostile file
        raise CheckpointError(f"{path} is cut off or not a plain state dict ({first_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a plain state dict of tensors")
    return state
