"""Search for good training settings with Optuna, by any number of workers that share a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from d2ed2q.data import checksums, open_dataset
from d2ed2q.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    RunFolderError,
    TrainingError,
    out_of_memory,
)
from d2ed2q.files import hold, write_text
from d2ed2q.recipes.config import convert, read_values, settings_from, write_values
from d2ed2q.recipes.run_data import require_held_out
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.sweep_journal import open_journal
from d2ed2q.recipes.sweep_settings import SweepSettings
from d2ed2q.recipes.sweep_space import Dimension, read_space
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.validation import keeps_best
from d2ed2q.report import draw_sweep
from d2ed2q.training import read_log

__all__ = ["sweep"]

_MOST_STARTS = 3  # of a trial at the same step: what kills every worker there would kill all that are still to come


def sweep(settings: SweepSettings) -> dict[str, Any]:
    """Works on a search until it has all its trials.

    Each trial is a run folder in the search's folder. A trial whose worker was killed is gone on with by the next
    worker that is free, from its checkpoint; whether a worker lives is told by a lock that the system takes from it.

    Returns:
        dict: the content of ``sweep.json``: ``metric``, ``trials`` (number, state, value, settings, folder, seconds)
        and ``best`` (the number of the best, or None).

    Raises:
        ConfigError: a file that is wrong, a folder with a search in another space or with other images, or no trial
            that could be trained.
        D2ED2QError: whatever is wrong with data or disk.
        Interrupted: stopped by Ctrl-C; the search goes on where it was.
    """
    space = read_space(settings.space)
    shared = {} if settings.train is None else read_values(settings.train, TrainSettings)
    for name in ("data", "out", "resume", "budget"):
        if name in shared:
            raise ConfigError(f"{settings.train}: {name} is not for all trials of a search")
    if not {"devices", "nodes"}.isdisjoint(shared):
        raise ConfigError(f"{settings.train}: a trial of a search has one device; start more workers instead")
    _remember(settings, space, shared)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_journal(settings.out),
        study_name="d2ed2q",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if settings.prune else optuna.pruners.NopPruner(),
    )
    while True:
        with _next_trial(settings, study, space) as trial:
            if trial is None:
                break
            _work(settings, study, space, shared, trial)
        _summarize(settings, study, space)
    result = _summarize(settings, study, space)
    failed = [trial["error"] for trial in result["trials"] if trial["state"] == "fail"]
    if result["best"] is None and len(failed) == len(result["trials"]):
        raise ConfigError(f"no trial has succeeded; the last one: {failed[-1]}")
    return result


def _remember(settings: SweepSettings, space: tuple[Dimension, ...], shared: dict[str, Any]) -> None:
    """Writes what is searched, or compares it with what other workers search."""
    dataset = open_dataset(settings.data, shared.get("dataset", TrainSettings.dataset))
    if settings.metric == "auc" and len(dataset.classes) > 2:
        raise ConfigError("several classes have no AUC; use --metric dice")
    digests = json.dumps(sorted(checksums(dataset.cases).items()))
    described = {
        "data": hashlib.sha256(digests.encode()).hexdigest(),
        "space": [dataclasses.asdict(dimension) for dimension in space],
        "shared": {name: str(value) for name, value in shared.items()},
        "metric": settings.metric,
    }
    text = json.dumps(described, indent=1) + "\n"
    path = settings.out / "space.json"
    with hold(settings.out / ".ask", wait=True):
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{settings.out} holds a search in another space, or with other images or settings; choose another"
            )
        write_text(path, text)


def _sampler(seed: int, trials: int) -> optuna.samplers.BaseSampler:
    """Draws the next trial of a search: of so many trials each worker draws the same, now or when it goes on later."""
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=(seed * 1_000_003 + trials) % 2**32)


@contextlib.contextmanager
def _next_trial(
    settings: SweepSettings, study: optuna.Study, space: tuple[Dimension, ...]
) -> Iterator[optuna.Trial | None]:
    """A trial for this worker alone: one whose worker is gone, or a new one; None where all are done or in work."""
    with contextlib.ExitStack() as held:
        with hold(settings.out / ".ask", wait=True):
            found: optuna.Trial | None = None
            trials = study.get_trials(deepcopy=False)
            for known in trials:
                if known.state != TrialState.RUNNING or not held.enter_context(hold(_lock(settings, known.number))):
                    continue
                # Once more: its worker may have ended it, and let go, since the trials were read.
                if study.get_trials(deepcopy=False)[known.number].state == TrialState.RUNNING:
                    found = optuna.Trial(study, known._trial_id)
                    break
            if found is None and len(trials) < settings.trials:
                study.sampler = _sampler(settings.seed, len(trials))
                found = study.ask()
                for dimension in space:  # drawn while nobody else draws
                    dimension.suggest(found)
                held.enter_context(hold(_lock(settings, found.number)))
        yield found


def _lock(settings: SweepSettings, number: int) -> Path:
    return settings.out / f".trial-{number:04}"


def _folder(settings: SweepSettings, number: int) -> Path:
    return settings.out / f"trial-{number:04}"


def _work(
    settings: SweepSettings,
    study: optuna.Study,
    space: tuple[Dimension, ...],
    shared: dict[str, Any],
    trial: optuna.Trial,
) -> None:
    """Trains one trial, or what is left of it, and tells the study."""
    chosen = {dimension.name: dimension.suggest(trial) for dimension in space}
    run = RunFolder(_folder(settings, trial.number))
    seen = set(study.trials[trial.number].intermediate_values)

    def watch(figures: dict[str, float]) -> None:
        validation = sum(row["kind"] == "validation" for row in read_log(run.metrics))
        if validation not in seen:  # those that a worker reported before it was killed may come again
            trial.report(figures[settings.metric], validation)
        if trial.should_prune():
            raise optuna.TrialPruned

    def fail(error: BaseException, text: str) -> None:
        trial.set_user_attr("error", text)
        study.tell(trial, state=TrialState.FAIL)
        if not any(other.state == TrialState.COMPLETE for other in study.trials) and trial.number >= 4:
            raise ConfigError(f"no trial has succeeded so far; the last one: {text}") from error

    try:
        _count_starts(run, trial)
        values = {**shared, **convert(chosen, TrainSettings, str(settings.space))}
        training = TrainSettings(**{**values, "data": settings.data, "out": run.path})
        require_held_out(training, "a search")
        if not run.card.exists():
            train(dataclasses.replace(training, resume=run.config.is_file()), watch)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (CheckpointError, ConfigError, DataError, RunFolderError, TrainingError) as error:
        fail(error, str(error))
    except Interrupted:
        trial.set_user_attr("starts", 0)  # nothing is wrong with it
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        fail(error, "there is not enough memory")
    else:
        study.tell(trial, _value(run, settings.metric))


def _count_starts(run: RunFolder, trial: optuna.Trial) -> None:
    """Notes that a trial is begun, or gone on with.

    Raises:
        TrainingError: several workers were killed at the step where it is now.
    """
    step = max((row["step"] for row in read_log(run.metrics)), default=0)
    starts = trial.user_attrs.get("starts", 0) + 1 if trial.user_attrs.get("step") == step else 1
    if starts > _MOST_STARTS:
        raise TrainingError(
            f"{_MOST_STARTS} workers were killed at step {step}: as they are if there is not enough memory"
        )
    trial.set_user_attr("step", step)
    trial.set_user_attr("starts", starts)


def _value(run: RunFolder, metric: str) -> float:
    """The figure of the epoch that the finished weights are of: the best one of the last phase, or the last one."""
    rows = [row for row in read_log(run.metrics) if row["kind"] == "validation"]
    last = [row for row in rows if row["phase"] == rows[-1]["phase"]]
    settings: TrainSettings = settings_from(run.config, TrainSettings)
    best = keeps_best(settings, len(run.read_json(run.data)["splits"]["validation"]))
    return float((max(last, key=lambda row: row["score"]) if best else last[-1])[metric])


def _row(settings: SweepSettings, trial: FrozenTrial, space: tuple[Dimension, ...]) -> dict[str, Any]:
    chosen = {}
    for dimension in space:
        if dimension.name in trial.params:
            value = trial.params[dimension.name]
            chosen[dimension.name] = json.loads(value) if dimension.choices else value
    duration = trial.duration.total_seconds() if trial.duration is not None else None
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "settings": chosen,
        "folder": _folder(settings, trial.number).name,
        "seconds": None if duration is None else round(duration, 1),
        "error": trial.user_attrs.get("error"),
    }


def _summarize(settings: SweepSettings, study: optuna.Study, space: tuple[Dimension, ...]) -> dict[str, Any]:
    """Writes ``sweep.json``, its picture, and the settings of the best trial as ``best.toml``."""
    rows = [_row(settings, trial, space) for trial in study.get_trials(deepcopy=False)]
    complete = [row for row in rows if row["value"] is not None]
    best = max(complete, key=lambda row: row["value"], default=None)
    result = {
        "metric": settings.metric,
        "wanted": settings.trials,
        "trials": rows,
        "best": None if best is None else best["number"],
    }
    with hold(settings.out / ".ask", wait=True):
        write_text(settings.out / "sweep.json", json.dumps(result, indent=1) + "\n")
        if best is not None:
            config = settings.out / best["folder"] / "config.toml"
            values = read_values(config, TrainSettings)
            kept = {name: value for name, value in values.items() if name not in ("data", "out", "resume")}
            write_values(settings.out / "best.toml", kept)
            draw_sweep(result, settings.out / "sweep.png")
    return result
