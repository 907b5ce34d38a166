"""Experiments as files: TOML with the settings of a training, and a table ``[experiment]`` of what else is to be known.

The same file can be given to ``d2ed2q train --config``, which leaves the table out.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from d2ed2q.ensemble import view_names
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import convert, load_toml
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = [
    "GOALS",
    "TABLE",
    "Experiment",
    "Line",
    "Other",
    "ResultTable",
    "find_experiments",
    "read_described",
    "read_experiment",
    "read_table",
    "require_own_names",
]

TABLE = "table.toml"
GOALS = "goals.toml"


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        label: what it is called; empty takes the experiment's title.
        weights: ``few_bit`` (the finished weights) or ``full_precision`` (before quantization).
        view: of :func:`~d2ed2q.ensemble.view_names`, or ``prediction``.
    """

    label: str = ""
    weights: Literal["few_bit", "full_precision"] = "few_bit"
    view: str = "prediction"


@dataclass(frozen=True)
class Other:
    """Another dataset that the same weights are scored on, unseen.

    Attributes:
        name: of the result.
        data: folder of the dataset, below the folder of all data.
        scale: see ``d2ed2q evaluate --scale``.
        split: ``test`` or ``all``; see ``d2ed2q evaluate --split``.
    """

    name: str
    data: str
    scale: float | None = None
    split: Literal["test", "all"] = "test"


@dataclass(frozen=True)
class _Description:
    data: str
    title: str = ""
    base: str | None = None
    start: str | None = None
    teacher: str | None = None
    superseded_by: str | None = None
    seeds: tuple[int, ...] = (0,)
    lines: tuple[Line, ...] = (Line(),)
    others: tuple[Other, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: path of its file below the folder of experiments, without ``.toml``.
        data: folder of the dataset, below the folder of all data.
        title: what it is called in tables.
        seeds: it is run with each of them.
        start: name of the experiment whose full-precision weights, of the same seed, are quantized; None trains.
        teacher: name of the experiment whose finished run, of the same seed, is distilled; None has the labels alone.
        superseded_by: name of the experiment that is better; None is a current one.
        lines: what tables show of it.
        others: further datasets that it is scored on.
        values: settings of the training, but for ``data``, ``out`` and ``seed``.
    """

    name: str
    data: str
    title: str
    seeds: tuple[int, ...]
    start: str | None
    teacher: str | None
    superseded_by: str | None
    lines: tuple[Line, ...]
    others: tuple[Other, ...]
    values: dict[str, Any]

    @property
    def source(self) -> str | None:
        """The experiment whose run has to be there first, if any."""
        return self.start or self.teacher

    @property
    def results(self) -> dict[str, Other | None]:
        """Names of its results, each with the other dataset that is scored there; None is its own."""
        return {self.name: None} | {other.name: other for other in self.others}

    def training(self, seed: int, data: Path, out: Path) -> TrainSettings:
        """The settings of its training with one seed.

        Args:
            seed: seed.
            data: folder of the dataset.
            out: run folder.

        Raises:
            ConfigError: the settings contradict each other.
        """
        return TrainSettings(**{**self.values, "data": data, "out": out, "seed": seed})


@dataclass(frozen=True)
class ResultTable:
    """``table.toml`` of a folder: how the results of its experiments are shown together.

    Attributes:
        title: heading.
        order: experiments, as the table lists them; a file names them from its folder on, ``../name`` too.
        text: what is said before the table.
        reference: experiment whose first line the others are compared with, seed by seed; one for each set of images
            where there are several, and none compares nothing.
    """

    title: str
    order: tuple[str, ...]
    text: str = ""
    reference: str | tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """The references, however many."""
        return (self.reference,) if isinstance(self.reference, str) else self.reference


def find_experiments(folder: Path, names: tuple[str, ...] = ()) -> list[Experiment]:
    """Reads experiments by name, or all.

    Args:
        folder: of all experiments.
        names: of experiments, or of folders of them, with or without their ``.toml``; none takes every one.

    Raises:
        ConfigError: no such experiment, or a file that is wrong.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder of experiments at {folder}; pass it with --folder")
    found: dict[str, Experiment] = {}
    for name in names or (".",):
        files = [folder / f"{name.removesuffix('.toml')}.toml"]
        if not files[0].is_file():
            files = _files(folder / name)
        if not files:
            known = sorted(_name(folder, file) for file in _files(folder))
            near = difflib.get_close_matches(name.removesuffix(".toml"), known, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
            raise ConfigError(f"there is no experiment {name} in {folder}; {hint}")
        for file in files:
            found.setdefault(_name(folder, file), read_experiment(folder, _name(folder, file)))
    return list(found.values())


def read_experiment(folder: Path, name: str) -> Experiment:
    """Reads one experiment.

    Raises:
        ConfigError: no such file, an unknown key, a value of the wrong type, or no ``[experiment]`` in it.
    """
    path = folder / f"{name}.toml"
    content = load_toml(path)
    described = content.pop("experiment", None)
    if not isinstance(described, dict) or "data" not in described:
        raise ConfigError(f"{path} lacks the table [experiment] with the folder of its data: data = 'DRIVE'")
    description = _converted(described, _Description, path)
    values = convert(content, TrainSettings, str(path))
    for key in ("data", "out", "resume"):
        if key in values:
            raise ConfigError(f"{path}: {key} is for the command line, not for an experiment")
    if "teacher" in values:
        raise ConfigError(f"{path}: teacher names an experiment here, and belongs below [experiment]")
    values.pop("seed", None)  # what d2ed2q train takes from the file; here it is one of the seeds
    if not description.seeds or len(set(description.seeds)) < len(description.seeds):
        raise ConfigError(f"{path}: seeds must be different numbers, got {list(description.seeds)}")
    if description.start is not None and description.teacher is not None:
        raise ConfigError(f"{path}: start and teacher exclude each other; give one of them")
    found = Experiment(
        name=name,
        data=description.data,
        title=description.title or name,
        seeds=description.seeds,
        start=description.start,
        teacher=description.teacher,
        superseded_by=description.superseded_by,
        lines=description.lines,
        others=description.others,
        values=values,
    )
    for other in found.others:
        if not re.fullmatch(r"[\w.-]+", other.name):
            raise ConfigError(f"{path}: the name {other.name!r} of others must be letters, digits, dots and hyphens")
    shown = {"prediction", *view_names(values.get("learners", TrainSettings.learners))}
    for line in found.lines:
        if line.view not in shown:
            raise ConfigError(f"{path}: there is no view {line.view!r}; there are: {', '.join(sorted(shown))}")
    for named in (found.source, found.superseded_by):
        if named is not None and not (folder / f"{named}.toml").is_file():
            raise ConfigError(f"{path}: it names {named}, but there is no {folder / named}.toml")
    return found


def require_own_names(experiments: Iterable[Experiment]) -> None:
    """Checks that no two results would be kept under one name.

    Raises:
        ConfigError: a name of ``others`` is another experiment's, or another one's of its others.
    """
    owners: dict[str, str] = {}
    for experiment in experiments:
        for name in (experiment.name, *(other.name for other in experiment.others)):
            if name in owners:
                raise ConfigError(
                    f"{experiment.name}.toml and {owners[name]}.toml both have results named {name}; give one of "
                    f"them another name"
                )
            owners[name] = experiment.name


def read_described(path: Path, kind: type[Any]) -> Any:
    """A TOML file as an instance of a dataclass.

    Raises:
        ConfigError: it is missing, or has an unknown key, or lacks one, or a value is of the wrong type.
    """
    return _converted(load_toml(path), kind, path)


def read_table(folder: Path, name: str) -> ResultTable:
    """Reads the ``table.toml`` of a folder of experiments.

    Args:
        folder: of all experiments.
        name: of the folder with the table, below ``folder``.

    Returns:
        ResultTable: its experiments by the names that they have in ``folder``.

    Raises:
        ConfigError: it is missing or wrong, or names experiments that are not there.
    """
    path = folder / name / TABLE
    table: ResultTable = read_described(path, ResultTable)
    for row in (*table.order, *table.references):
        if not (path.parent / f"{row}.toml").is_file():
            raise ConfigError(f"{path} names {row}, but there is no {path.parent / row}.toml")

    def full(rows: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_name(folder, path.parent / f"{row}.toml") for row in rows)

    return dataclasses.replace(table, order=full(table.order), reference=full(table.references))


def _files(folder: Path) -> list[Path]:
    """Files of experiments; those that others only build on begin with an underscore."""
    files = sorted(folder.rglob("*.toml")) if folder.is_dir() else []
    return [file for file in files if file.name not in (TABLE, GOALS) and not file.name.startswith("_")]


def _name(folder: Path, file: Path) -> str:
    """The one name that an experiment has, however its file was named."""
    try:
        return file.resolve().relative_to(folder.resolve()).with_suffix("").as_posix()
    except ValueError:
        raise ConfigError(f"{file} is not in {folder}; pass the folder of all experiments with --folder") from None


def _converted(table: dict[str, Any], kind: type[Any], path: Path) -> Any:
    values = convert(table, kind, str(path))
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(f"{path}: the key {field.name!r} is missing")
    try:
        return kind(**values)
    except (TypeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
