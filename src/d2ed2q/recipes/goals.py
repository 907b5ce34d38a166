"""What the experiments were to reach, and whether they do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.experiment_figures import Seeds, figures_of, margin, spread
from d2ed2q.recipes.experiment_file import GOALS, read_described

__all__ = ["Figure", "Goal", "goals_table"]


@dataclass(frozen=True)
class Figure:
    """A figure of a result.

    Attributes:
        result: name of the result.
        figure: what is scored, such as ``auc``, ``dice`` or ``ece``.
        weights: ``few_bit`` (the finished weights) or ``full_precision`` (before quantization).
        view: of :func:`~d2ed2q.ensemble.view_names`, or ``prediction``.
    """

    result: str
    figure: str
    weights: Literal["few_bit", "full_precision"] = "few_bit"
    view: str = "prediction"


@dataclass(frozen=True)
class Goal:
    """One goal: a figure; less another one with ``minus``; divided by ``over``, which is taken less ``minus`` too.

    Attributes:
        what: in words.
        of: the figure.
        minus: what is taken from it, seed by seed.
        over: what it is divided by, mean by mean.
        at_least: the least mean over seeds that reaches the goal.
        at_most: the greatest one.
    """

    what: str
    of: Figure
    minus: Figure | None = None
    over: Figure | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Exactly one bound; reading a file makes a ConfigError of it."""
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"the goal {self.what!r} needs either at_least or at_most")

    @property
    def limit(self) -> float:
        """The number that is not to be missed."""
        return float(self.at_most if self.at_least is None else self.at_least)  # type: ignore[arg-type]  # one is given

    def bound(self) -> str:
        """What is to be reached, in signs."""
        return f"{'≤' if self.at_least is None else '≥'} {self.limit:g}"

    def reached(self, mean: float) -> bool:
        """Whether a mean over seeds is enough."""
        return mean <= self.limit if self.at_least is None else mean >= self.limit


@dataclass(frozen=True)
class _Goals:
    goals: tuple[Goal, ...]
    text: str = ""


def goals_table(folder: Path, results: Mapping[str, Seeds]) -> list[str]:
    """The heading and the table of ``goals.toml``; nothing if there is none.

    Args:
        folder: of all experiments.
        results: by name, for each seed.

    Raises:
        ConfigError: the file is wrong, or names a figure that its result does not have.
    """
    path = folder / GOALS
    if not path.is_file():
        return []
    read: _Goals = read_described(path, _Goals)
    lines = ["| | wanted | measured | seeds | reached |", "|---|---|---|---|---|"]
    lines += [_line(goal, results) for goal in read.goals]
    return ["## What was aimed at", *([read.text.strip()] if read.text else []), "\n".join(lines)]


def _line(goal: Goal, results: Mapping[str, Seeds]) -> str:
    values, parts = _values(goal, results)
    if not values:
        return f"| {goal.what} | {goal.bound()} | not measured | | |"
    mean, measured = statistics.fmean(values.values()), spread(list(values.values()))
    if parts:
        # Of means: a ratio of single seeds whose denominator is near zero would be anything.
        whole = statistics.fmean(parts.values())
        mean = mean / whole if whole > 0 else float("nan")
        measured = f"{mean:.2f}" if whole > 0 else f"no share: the whole is {whole:.4f}"
    # A ratio is as far above its bound as the numerator is above so much of the denominator (Fieller, 1954).
    above = [value - goal.limit * parts[seed] if parts else value - goal.limit for seed, value in values.items()]
    reached = "yes" if goal.reached(mean) else "**no**"
    if len(values) == 1:
        reached += ", of one seed"
    elif not math.isnan(mean) and margin(above) > abs(statistics.fmean(above)):
        reached += ", within chance"
    seeds = ", ".join(map(str, sorted(values)))
    return f"| {goal.what} | {goal.bound()} | {measured.replace('-', '−')} | {seeds} | {reached} |"


def _values(goal: Goal, results: Mapping[str, Seeds]) -> tuple[dict[int, float], dict[int, float]]:
    """The goal's figure, and what it is divided by if anything, for each seed that all its results have."""
    of, minus, over = (
        None if figure is None else _by_seed(figure, results) for figure in (goal.of, goal.minus, goal.over)
    )
    seeds = set.intersection(*(set(part) for part in (of, minus, over) if part is not None))
    values, parts = (
        {seed: part[seed] - (minus[seed] if minus is not None else 0.0) for seed in seeds} if part is not None else {}
        for part in (of, over)
    )
    return values, parts


def _by_seed(figure: Figure, results: Mapping[str, Seeds]) -> dict[int, float]:
    found = {
        result["seed"]: figures_of(result, figure.weights, figure.view).get(figure.figure)
        for result in results.get(figure.result, ())
    }
    if None in found.values():
        raise ConfigError(
            f"{GOALS}: {figure.result} has no '{figure.figure}' of {figure.view} in {figure.weights}; see its "
            f"results' files"
        )
    return {seed: float(value) for seed, value in found.items() if value is not None}
