"""The picture of a search for settings: what each trial reached, and what each setting had to do with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d2ed2q.files import atomic_path

__all__ = ["draw_sweep"]

_COLUMNS = 3
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#767676"


def draw_sweep(result: Mapping[str, Any], path: Path) -> None:
    """Draws the trials in their order with the best so far, and for every setting its values against what they gave.

    Args:
        result: of :func:`~d2ed2q.recipes.sweep.sweep`, with one finished trial or more.
        path: PNG file to write.

    Raises:
        StorageError: the file could not be written.
    """
    done = [trial for trial in result["trials"] if trial["value"] is not None]
    names = list(done[0]["settings"])
    rows = -(-(1 + len(names)) // _COLUMNS)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
        figure = Figure(figsize=(4 * _COLUMNS, 3.2 * rows), dpi=110, layout="constrained")
        axes = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flatten()
        _history(axes[0], done, result["metric"])
        for own, name in zip(axes[1:], names, strict=False):
            _setting(own, name, done, result["best"])
        for unused in axes[1 + len(names) :]:
            unused.set_axis_off()
        for first in axes[::_COLUMNS]:
            first.set_ylabel(f"validation {result['metric']}")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def _history(axes: Any, done: Sequence[Mapping[str, Any]], metric: str) -> None:
    numbers = [trial["number"] for trial in done]
    values = [trial["value"] for trial in done]
    axes.plot(numbers, values, "o", color=_GREY, markersize=4, label="trial")
    axes.step(numbers, list(accumulate(values, max)), where="post", color=_BLUE, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.legend(frameon=False, loc="lower right")


def _setting(axes: Any, name: str, done: Sequence[Mapping[str, Any]], best: int | None) -> None:
    values = [trial["settings"][name] for trial in done]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    labels = [json.dumps(value) for value in values]
    known = sorted(set(labels))
    places = values if numeric else [known.index(label) for label in labels]
    for place, trial in zip(places, done, strict=True):
        chosen = trial["number"] == best
        axes.plot([place], [trial["value"]], "D" if chosen else "o", color=_ORANGE if chosen else _BLUE, markersize=5)
    if not numeric:
        axes.set_xticks(range(len(known)), known)
        axes.margins(x=0.2)
    elif min(values) > 0 and max(values) / min(values) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(name.replace("_", " "))
