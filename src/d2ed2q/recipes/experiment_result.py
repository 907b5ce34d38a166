"""What is kept of an experiment: figures without single images, and everything that they depend on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from d2ed2q.ensemble import DeepDiversifiedLoss
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.environment import hardware
from d2ed2q.recipes.experiment_file import Experiment
from d2ed2q.recipes.inspect_run import tensor_facts, weight_bytes
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train_settings import WHERE, TrainSettings

__all__ = ["evaluation_command", "kept_settings", "result_of", "result_path"]

_FIGURES = (
    *("dice", "iou", "auc", "average_precision", "sensitivity", "specificity", "mcc", "cldice", "hd95", "assd"),
    *("ece", "brier", "nll", "aurc", "per_class"),
)


def result_path(folder: Path, name: str, seed: int) -> Path:
    """Where the result of an experiment with one seed is kept."""
    return folder / "results" / f"{name}-seed{seed}.json"


def kept_settings(settings: TrainSettings) -> dict[str, Any]:
    """All settings but where a training was; its teacher is named by the experiment. As JSON gives them back."""
    left_out = {*WHERE, "device", "teacher"}
    kept = {key: value for key, value in dataclasses.asdict(settings).items() if key not in left_out}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def evaluation_command(experiment: Experiment, name: str) -> str:
    """The command that scores a run for one of the results of its experiment."""
    other = experiment.results[name]
    if other is None:
        return "d2ed2q evaluate RUN --data DATA"
    scale = "" if other.scale is None else f" --scale {other.scale:g}"
    return f"d2ed2q evaluate RUN --data OTHER --out OUT{scale}{' --split all' if other.split == 'all' else ''}"


def result_of(experiment: Experiment, seed: int, run: RunFolder, evaluated: RunFolder, name: str) -> dict[str, Any]:
    """Reads what is kept out of a run that was evaluated.

    Args:
        experiment: what was run.
        seed: with which seed.
        run: its folder.
        evaluated: the folder of the evaluation: the run's own, or that of another dataset.
        name: of the result.

    Raises:
        RunFolderError: run or evaluation have not finished.
    """
    evaluation, card = run.read_json(evaluated.evaluation), run.read_card()
    trained, data = run.read_json(run.environment), run.read_json(run.data)
    settings: TrainSettings = settings_from(run.config, TrainSettings)
    with torch.no_grad():
        ensemble = run.load()
        sizes = weight_bytes(ensemble, card, tensor_facts(ensemble, card))
    full, scoring = evaluation["full_precision"], evaluation["environment"]
    sessions = [trained, *trained.get("resumed", ())]
    return {
        "name": name,
        "experiment": experiment.name,
        "title": experiment.title,
        "command": f"d2ed2q experiment run {experiment.name} --data DATA --seeds {seed}",
        "scored_by": evaluation_command(experiment, name),
        "seed": seed,
        "teacher": experiment.teacher,
        "date": trained["date"],
        "machine": ", then ".join(dict.fromkeys(map(hardware, sessions))),
        "commits": list(dict.fromkeys(session.get("commit") for session in sessions)),
        "packages": trained["packages"],
        "scored_date": scoring["date"],
        "scored_commit": scoring.get("commit"),
        "backbone": card.backbone,
        "learners": card.learners,
        "fuse": card.fuse,
        "dataset": evaluation["dataset"]["name"],
        "dataset_title": evaluation["dataset"]["title"],
        "trained_on": data["dataset"],
        "trained_on_title": data.get("title", data["dataset"]),
        "scored": evaluation["dataset"]["split"],
        "images": len(evaluation["images"]),
        "split": {part: len(ids) for part, ids in data["splits"].items()},
        "sha256": data["sha256"],
        "scored_sha256": evaluation["sha256"],
        "training_minutes": round(card.training_seconds / 60, 1),
        "settings": kept_settings(settings),
        "epochs": [settings.epochs, settings.epochs_q if card.bits else 0],
        "bits": list(card.bits) if card.bits else None,
        "codebook": card.codebook,
        "random": settings.random if card.bits else None,
        "lr": settings.rate,
        "alpha": DeepDiversifiedLoss(settings.alpha, settings.diversity).alpha if settings.learners else None,
        "diversity_form": settings.diversity if settings.learners else None,
        "parameters": sum(parameter.numel() for parameter in ensemble.parameters()),
        "bytes": dict(sizes),
        "standardize": card.standardize,
        "tta": evaluation["tta"],
        "prediction": evaluation["prediction"],
        "training_images": settings.training_images,
        "threshold_images": settings.threshold_images,
        "threshold": card.thresholds[evaluation["prediction"]],
        "cleaning": evaluation.get("cleaning"),
        "few_bit": _scopes(evaluation),
        "full_precision": _scopes(full) if full is not None else None,
        "objects": {
            weights: {key: value for key, value in source["objects"].items() if key != "per_image"}
            for weights, source in (("few_bit", evaluation), ("full_precision", full))
            if source is not None and source.get("objects")
        }
        or None,
        "diversity": evaluation["diversity"],
        "diversity_full_precision": full["diversity"] if full is not None else None,
    }


def _scopes(source: dict[str, Any]) -> dict[str, Any]:
    return {
        scope: {view: {name: row[name] for name in _FIGURES if name in row} for view, row in learners.items()}
        for scope, learners in source["scopes"].items()
    }
