"""Runs experiments: trains or quantizes, evaluates, and keeps the result; what is there already is not done again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from d2ed2q.errors import ConfigError, RunBusyError
from d2ed2q.files import write_text
from d2ed2q.recipes.config import first_difference, settings_from
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.experiment_check import require_as_described, require_same_images
from d2ed2q.recipes.experiment_figures import read_kept
from d2ed2q.recipes.experiment_file import Experiment, find_experiments, read_experiment, require_own_names
from d2ed2q.recipes.experiment_result import result_of, result_path
from d2ed2q.recipes.experiment_settings import ExperimentRunSettings
from d2ed2q.recipes.quantize import QUANTIZATION, quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import WHERE, TrainSettings

__all__ = ["run_experiments"]


def run_experiments(settings: ExperimentRunSettings) -> list[Path]:
    """Runs what has no result yet, seed by seed, in the order of names and seeds.

    An experiment that starts from another, or is taught by it, runs that one's training first, where it is not there.
    Stopped and called again, it goes on where it stopped, in the middle of a training too.

    Returns:
        list[Path]: the results that were written.

    Raises:
        ConfigError: no such experiment, a file that is wrong, or a seed that no experiment has.
        RunBusyError: other processes train some of them; all others are done.
        D2ED2QError: whatever is wrong with data, folder or disk.
        Interrupted: stopped by Ctrl-C.
    """
    experiments = find_experiments(settings.folder, settings.names)
    unknown = set(settings.seeds) - {seed for experiment in experiments for seed in experiment.seeds}
    if unknown:
        raise ConfigError(f"no experiment of {', '.join(settings.names)} has the seed {min(unknown)}")
    # Every file is read before anything long is done.
    sources = {name: read_experiment(settings.folder, name) for e in experiments if (name := e.source) is not None}
    for source in sources.values():
        if source.source is not None:
            raise ConfigError(f"{source.name} cannot be built on: it builds on {source.source} itself")
    require_own_names(find_experiments(settings.folder))
    for experiment in (*experiments, *sources.values()):
        for data in (experiment.data, *(other.data for other in experiment.others)):
            root = settings.data / data
            if not root.is_dir():
                raise ConfigError(
                    f"the data of {experiment.name} are not at {root}; pass the folder of all data with --data"
                )
    written, busy = [], []
    for experiment in experiments:
        for seed in experiment.seeds:
            if settings.seeds and seed not in settings.seeds:
                continue
            try:
                written += _run(settings, experiment, sources.get(experiment.source or ""), seed)
            except RunBusyError as error:  # what is left may be free
                busy.append(error)
    if busy:
        raise RunBusyError(f"{len(written)} new results, {len(busy)} left to others: {busy[0]}")
    return written


def _run(settings: ExperimentRunSettings, experiment: Experiment, source: Experiment | None, seed: int) -> list[Path]:
    """Results of one seed that were written."""
    # Nothing is trained only to be scored again.
    again = settings.again and _folder(settings, experiment, seed).card.is_file()
    missing = []
    for name, other in experiment.results.items():
        path = result_path(settings.folder, name, seed)
        if again or not path.is_file():
            missing.append((name, other))
        else:
            require_as_described(experiment, read_kept(path, ("name", "seed")), path)
    if not missing:
        return []
    run = _trained(settings, experiment, source, seed)
    written = []
    for name, other in missing:
        out = None if other is None else run.path / other.name
        folder = RunFolder(out or run.path)
        scored = EvaluateSettings(run.path, data=settings.data / experiment.data)
        if other is not None:
            scored = EvaluateSettings(
                run.path, data=settings.data / other.data, out=out, scale=other.scale, split=other.split
            )
        evaluate(scored)  # anew: whatever stands there may have been scored on other images, or in another way
        result = result_of(experiment, seed, run, folder, name)
        path = result_path(settings.folder, name, seed)
        require_same_images([(experiment, path, result)])
        write_text(path, json.dumps(result, indent=1) + "\n")
        written.append(path)
    return written


def _trained(
    settings: ExperimentRunSettings, experiment: Experiment, source: Experiment | None, seed: int
) -> RunFolder:
    """The finished run of one seed."""
    run = _folder(settings, experiment, seed)
    data = settings.data / experiment.data
    training = experiment.training(seed, data, run.path)
    if source is not None and experiment.teacher is None:
        # Quantizing anew takes what is not given from its source; a file says what it has, its default too.
        training = dataclasses.replace(training, lr_q=training.rate_q)
    resume = run.config.is_file()
    if resume:
        _require_as_described(run, training, experiment)
    if run.card.is_file():
        return run
    changed: dict[str, Any] = {} if settings.device is None else {"device": settings.device}
    built_on = None if source is None else _trained(settings, source, None, seed).path
    if built_on is None or experiment.teacher is not None:
        return train(dataclasses.replace(training, teacher=built_on, resume=resume, **changed))
    chosen = {name: getattr(training, name) for name in QUANTIZATION}
    return quantize(QuantizeSettings(built_on, out=run.path, data=data, resume=resume, **chosen, **changed))


def _require_as_described(run: RunFolder, training: TrainSettings, experiment: Experiment) -> None:
    """Checks that a run was begun with the settings that its experiment has now."""
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    found = first_difference(trained, training, (*WHERE, "device", "teacher"))
    # A folder of runs may have been moved: its teacher is told by the experiment and the seed.
    teacher = None if trained.teacher is None else trained.teacher.as_posix()
    wanted = None if experiment.teacher is None else f"{experiment.teacher}-seed{training.seed}"
    if not (teacher == wanted or (teacher and wanted and teacher.endswith(f"/{wanted}"))):
        found = found or ("teacher", teacher, experiment.teacher)
    if found is not None:
        name, then, now = found
        raise ConfigError(
            f"{run.path} was begun with {name} = {then}, but {experiment.name}.toml has {now} now; remove "
            f"that folder to train anew, or give the file its old value back"
        )


def _folder(settings: ExperimentRunSettings, experiment: Experiment, seed: int) -> RunFolder:
    return RunFolder(settings.runs / f"{experiment.name}-seed{seed}")
