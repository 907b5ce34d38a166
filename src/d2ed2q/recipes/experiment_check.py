"""Kept results, each that of its experiment as its file stands now, and all of the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from d2ed2q.ensemble import DeepDiversifiedLoss
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.experiment_figures import read_kept
from d2ed2q.recipes.experiment_file import Experiment, read_experiment
from d2ed2q.recipes.experiment_result import evaluation_command, kept_settings, result_path

__all__ = ["read_results", "require_as_described", "require_same_images"]

_KEYS = (
    *("name", "experiment", "seed", "prediction", "bits", "few_bit", "full_precision", "images", "split"),
    "sha256",
)


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All results below ``folder/results``: by name, for each seed.

    Raises:
        ConfigError: one is cut off, is not where its name and seed belong, is not that of its experiment's file as it
            is now, or is of other images than the rest.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    experiments: dict[str, Experiment] = {}
    checked = []
    for path in sorted((folder / "results").rglob("*.json")):
        if path.name.startswith("."):  # one that was being written when its process was killed
            continue
        result = read_kept(path, _KEYS)
        own = result_path(folder, result["name"], result["seed"])
        if path != own:
            raise ConfigError(f"{path} is the result that belongs to {own}; move it there, or remove it")
        name = result["experiment"]
        if name not in experiments:
            experiments[name] = read_experiment(folder, name)
        require_as_described(experiments[name], result, path)
        found.setdefault(result["name"], []).append(result)
        checked.append((experiments[name], path, result))
    require_same_images(checked)
    return {name: sorted(seeds, key=lambda result: result["seed"]) for name, seeds in sorted(found.items())}


def require_as_described(experiment: Experiment, result: Mapping[str, Any], path: Path) -> None:
    """Checks that a result was made with what the file of its experiment says now, as far as it tells.

    Args:
        experiment: as it is now.
        result: what was kept.
        path: of the result.

    Raises:
        ConfigError: seed, name, settings, teacher or the evaluation are others.
    """
    remedy = f"remove {path} to run it anew, or give {experiment.name}.toml its old value back"
    if result["seed"] not in experiment.seeds:
        raise ConfigError(f"{experiment.name}.toml has no seed {result['seed']}, of which {path} is")
    if result["name"] not in experiment.results:
        raise ConfigError(f"{experiment.name}.toml has no result {result['name']}, which {path} is")
    settings = experiment.training(result["seed"], Path("data"), Path("run"))
    said = kept_settings(settings) | {"lr": settings.rate, "lr_q": settings.rate_q}
    for name, value in (result.get("settings") or {}).items():
        if value is None and name in ("lr", "lr_q"):  # a backbone's own, which are numbers where a run was begun anew
            own = dataclasses.replace(settings, lr=None) if name == "lr" else dataclasses.replace(settings, lr_q=None)
            value = own.rate if name == "lr" else own.rate_q
        if said.get(name) != value:
            raise ConfigError(f"{path} was made with {name} = {value}, but the file has {said.get(name)} now; {remedy}")
    now: dict[str, Any] = {
        "backbone": settings.backbone,
        "learners": settings.learners,
        "lr": settings.rate,
        "tta": settings.tta,
        "fuse": settings.fuse,
        "random": settings.random,
        "standardize": settings.standardize,
        "training_images": settings.training_images,
        "threshold_images": settings.threshold_images,
        "diversity_form": settings.diversity,
        "alpha": DeepDiversifiedLoss(settings.alpha, settings.diversity).alpha,
        "epochs": [settings.epochs, settings.epochs_q if settings.quantize else 0],
        "teacher": experiment.teacher,
        "scored_by": evaluation_command(experiment, result["name"]),
    }
    if settings.quantize:
        now |= {"bits": list(settings.bits_per_learner), "codebook": settings.codebook}
    for name, value in now.items():
        if result.get(name) is not None and result[name] != value:
            raise ConfigError(f"{path} was made with {name} = {result[name]}, but the file has {value} now; {remedy}")


def require_same_images(results: Iterable[tuple[Experiment, Path, Mapping[str, Any]]]) -> None:
    """Checks that images of one name, of one set, had the same content wherever they were trained on or scored.

    Args:
        results: with their experiments, and the files that they are in.

    Raises:
        ConfigError: an image or its mask was another one in two results.
    """
    known: dict[tuple[str, str], tuple[str, Path]] = {}
    for experiment, path, result in results:
        other = experiment.results[result["name"]]
        scored = experiment.data if other is None else other.data
        for of, digests in ((experiment.data, result["sha256"]), (scored, result.get("scored_sha256"))):
            for image, digest in (digests or {}).items():
                before, where = known.setdefault((of, image), (digest, path))
                if digest != before:
                    raise ConfigError(
                        f"{path} and {where} have other images: {image} of {of}, or its mask, differs; run one of "
                        f"them anew on the other's"
                    )
