"""What cross-validation says: the figures of every fold that was left out, their mean and their spread."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from d2ed2q.errors import ConfigError, DataError
from d2ed2q.files import write_text
from d2ed2q.metrics.summary import summary
from d2ed2q.recipes.config import first_difference, settings_from
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import FoldsSettings
from d2ed2q.recipes.train_settings import WHERE, TrainSettings

__all__ = ["summarize_folds"]

_MAY_DIFFER = (*WHERE, "device", "fold", "time_limit")
# With a budget each fold is planned by itself, as fast as the machine was at that time.
_PLANNED = ("epochs", "epochs_q", "epoch_images", "validate_every", "validation_images", "validation_fraction")


def summarize_folds(settings: FoldsSettings) -> dict[str, Any]:
    """Gathers the evaluations of runs that were trained on the folds of one dataset.

    Returns:
        dict: ``folds`` (their number), ``scored`` (which of them are here), ``missing``, ``runs``, ``images`` (their
        number), ``prediction`` of each, and for ``few_bit`` and, where it was scored, ``full_precision``, by scope and
        figure: ``{"mean", "std", "values"}`` of the run's prediction; the standard deviation is that of a sample
        (n − 1). Figures of objects are in the scope ``objects``.

    Raises:
        RunFolderError: a run has not finished, or was not evaluated.
        DataError: the runs are not of different folds of one cross-validation, or were scored on other images.
        ConfigError: the runs were trained with other settings.
    """
    if not settings.runs:
        raise ConfigError("folds needs the run folders of a cross-validation")
    runs = [RunFolder(path) for path in settings.runs]
    trained: list[TrainSettings] = [settings_from(run.config, TrainSettings) for run in runs]
    evaluations = [run.read_json(run.evaluation) for run in runs]
    _require_one_cross_validation(runs, trained, evaluations)
    order = sorted(range(len(runs)), key=lambda index: trained[index].fold or 0)
    results = [evaluations[index] for index in order]
    scored = [trained[index].fold for index in order]
    total = trained[0].folds or 0
    complete = all(result["full_precision"] is not None for result in results)
    few_bit = [_figures(result, result["prediction"]) for result in results]
    full = [_figures(r["full_precision"], r["prediction"]) for r in results] if complete else None
    names = _names([*few_bit, *(full or ())])
    result: dict[str, Any] = {
        "folds": total,
        "scored": scored,
        "missing": [fold for fold in range(total) if fold not in scored],
        "runs": [str(runs[index].path) for index in order],
        "images": sum(len(evaluation["images"]) for evaluation in results),
        "prediction": [evaluation["prediction"] for evaluation in results],
        "few_bit": _spread(few_bit, names),
        "full_precision": None if full is None else _spread(full, names),
    }
    if settings.json is not None:
        write_text(settings.json, json.dumps(result, indent=1) + "\n")
    return result


def _require_one_cross_validation(
    runs: Sequence[RunFolder], trained: Sequence[TrainSettings], evaluations: Sequence[dict[str, Any]]
) -> None:
    first = trained[0]
    seen: dict[int, RunFolder] = {}
    images: dict[str, str] = {}
    for run, own, evaluation in zip(runs, trained, evaluations, strict=True):
        if own.folds is None or own.fold is None:
            raise DataError(f"{run.path} was trained without folds; train with --folds and --fold")
        if evaluation["dataset"]["split"] != "fold":
            raise DataError(f"{run.path} was scored on other images than its fold; use: d2ed2q evaluate --split fold")
        if own.fold in seen:
            raise DataError(f"{run.path} and {seen[own.fold].path} are of the same fold, {own.fold}; leave one out")
        seen[own.fold] = run
        if (view := evaluation["prediction"]) not in next(iter(evaluation["scopes"].values()), {}):
            raise DataError(f"{run.evaluation} has no view {view!r}; score that run again: d2ed2q evaluate {run.path}")
        for name, way in (("tta", "test-time augmentation"), ("scale", "scale")):
            if evaluation[name] != evaluations[0][name]:
                raise DataError(
                    f"{run.path} was scored with the {way} {evaluation[name]}, {runs[0].path} with "
                    f"{evaluations[0][name]}; score all folds alike: d2ed2q evaluate"
                )
        if (unit := _unit(evaluation)) != _unit(evaluations[0]):  # where some images have no spacing
            raise DataError(
                f"{run.path} has distances in {unit}, {runs[0].path} in {_unit(evaluations[0])}: they have no common "
                "mean; give every image its spacing, or none"
            )
        recorded = run.read_json(run.data)["sha256"]
        common = images.keys() & recorded.keys()
        if any(images[id] != recorded[id] for id in common) or (images and not common):
            raise DataError(
                f"{run.path} was trained on other images than {runs[0].path}; summarize folds of one dataset"
            )
        images |= recorded
        free = (*_MAY_DIFFER, *(_PLANNED if own.budget is not None and own.budget == first.budget else ()))
        if (found := first_difference(own, first, free)) is not None:
            name, ours, theirs = found
            raise ConfigError(
                f"{run.path} was trained with {name} = {ours}, {runs[0].path} with {theirs}; train all folds "
                f"with one file: d2ed2q plan, then d2ed2q train --config plan.toml --folds N --fold I"
            )


def _unit(evaluation: Mapping[str, Any]) -> str | None:
    """Of surface distances, where they were measured."""
    view = evaluation["prediction"]
    unit: str | None = next(iter(evaluation["scopes"].values()))[view].get("surface_unit")
    return unit


def _figures(result: dict[str, Any], view: str) -> dict[str, dict[str, float]]:
    """The prediction's plain numbers, by scope."""
    scopes = {scope: learners[view] for scope, learners in result["scopes"].items()}
    scopes |= {"objects": result["objects"]} if result.get("objects") else {}
    return {
        scope: {name: value for name, value in figures.items() if isinstance(value, float)}
        for scope, figures in scopes.items()
    }


def _names(results: Sequence[dict[str, dict[str, float]]]) -> dict[str, tuple[str, ...]]:
    """What any fold has, by scope, in its order: a figure may be undefined on the images of a single one."""
    scopes = dict.fromkeys(scope for result in results for scope in result)
    return {
        scope: tuple(dict.fromkeys(name for result in results for name in result.get(scope, {}))) for scope in scopes
    }


def _spread(results: Sequence[dict[str, dict[str, float]]], names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Mean and spread of every figure; None stands where one is not defined."""
    return {
        scope: {
            name: summary([result.get(scope, {}).get(name, math.nan) for result in results]) for name in names[scope]
        }
        for scope in names
    }
