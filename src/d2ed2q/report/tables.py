"""What stands in the tables and in the headline of a report page: figures turned into text, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from d2ed2q.report.content import RunReport
from d2ed2q.report.names import FIGURE_NAMES, NOT_MEASURED, finite, learner_name, number, scope_name, signed

__all__ = [
    "Bar",
    "FigureTable",
    "Headline",
    "Row",
    "Tile",
    "class_table",
    "diversity_bars",
    "diversity_figures",
    "few_label",
    "headline",
    "image_rows",
    "learner_tables",
    "main_scope",
    "per_image_dice",
    "prediction_figures",
]

_ACCURACY = (
    "dice",
    "iou",
    "auc",
    "average_precision",
    "accuracy",
    "sensitivity",
    "specificity",
    "mcc",
    "cldice",
    "hd95",
    "assd",
    "threshold",
)
_DOUBT = ("ece", "brier", "nll", "aurc")
_MISSING = "–"
_DIGITS = {"hd95": 2, "assd": 2, "threshold": 3, "object_hausdorff": 2}


class Tile(NamedTuple):
    """One number of the headline."""

    name: str
    value: str
    note: str


class Headline(NamedTuple):
    """The run in one sentence and a few tiles."""

    sentence: str
    tiles: list[Tile]


class Row(NamedTuple):
    """One line of a table."""

    learner: str
    """Empty where the row goes on about the learner above."""
    weights: str
    cells: list[str]
    is_prediction: bool


class FigureTable(NamedTuple):
    """A table with the region it speaks of in its heading."""

    heading: str
    columns: list[str]
    rows: list[Row]


class Bar(NamedTuple):
    """One tap's similarity, as text and as a share in [0, 1]; None where it was not measured."""

    tap: str
    few: str
    few_share: float | None
    full: str | None
    full_share: float | None


Figures = Mapping[str, Any]
_OBJECTS = ("object_f1", "object_precision", "object_recall", "object_dice", "object_hausdorff")


def main_scope(report: RunReport) -> str | None:
    """The scope of the headline: inside the region of interest, where the set has one."""
    scopes = report.evaluation.get("scopes") or {}
    return "fov" if "fov" in scopes else next(iter(scopes), None)


def prediction_figures(report: RunReport, scope: str | None, full: bool = False) -> Figures:
    """Figures of the prediction in one scope; empty where they were not measured.

    Args:
        report: the report.
        scope: ``fov``, ``whole`` or None.
        full: those of the full-precision weights.
    """
    learners = _learners(report, scope, full)
    return learners.get(report.evaluation.get("prediction") or "") or {}


def _learners(report: RunReport, scope: str | None, full: bool) -> Mapping[str, Figures]:
    source = (report.evaluation.get("full_precision") or {}) if full else report.evaluation
    return (source.get("scopes") or {}).get(scope) or {}


def few_label(report: RunReport) -> str:
    """What the finished weights are called: few-bit only if they are."""
    return "few-bit" if report.quantized else "finished"


def headline(report: RunReport) -> Headline:
    """The prediction's figures beside those of the full-precision weights."""
    scope = main_scope(report)
    few, full = prediction_figures(report, scope), prediction_figures(report, scope, full=True)
    ranking = "auc" if few.get("auc") is not None or few.get("iou") is None else "iou"
    tiles = [_tile(name, few, full) for name in ("dice", ranking, "ece")]
    tiles.append(Tile("Bits per weight", report.summary.get("bits", NOT_MEASURED), ""))
    tiles.append(Tile("Size", report.summary.get("size", NOT_MEASURED), ""))
    return Headline(_sentence(report, scope, few, full, ranking), tiles)


def _tile(name: str, few: Figures, full: Figures) -> Tile:
    before, after = finite(full.get(name)), finite(few.get(name))
    note = ""
    if after is not None:
        note = "full precision not measured"
        if before is not None:
            note = f"full precision {number(before)} ({signed(after - before)})"
    return Tile(FIGURE_NAMES[name], number(few.get(name)), note)


def _sentence(report: RunReport, scope: str | None, few: Figures, full: Figures, ranking: str) -> str:
    if scope is None or finite(few.get("dice")) is None:
        return "The accuracy of this run was not measured."
    images = len(report.evaluation.get("images") or ())
    learner = learner_name(str(report.evaluation.get("prediction"))).lower()
    counted = f"On {images} {'image' if images == 1 else 'images'}" if images else "On the scored images"
    sentence = (
        f"{counted}, {scope_name(scope)}, the {few_label(report)} {learner} reached Dice {number(few['dice'], 3)}"
    )
    if finite(few.get(ranking)) is not None:
        sentence += f" and {FIGURE_NAMES[ranking]} {number(few[ranking], 3)}"
    if report.quantized and finite(full.get("dice")) is not None:
        sentence += f"; before quantization its Dice was {number(full['dice'], 3)}"
    return sentence + "."


def learner_tables(report: RunReport, doubt: bool = False) -> list[FigureTable]:
    """One table for each scope: a row a learner, full precision above few bits.

    Args:
        report: the report.
        doubt: figures of calibration and doubt in place of those of accuracy.
    """
    tables = []
    for scope in report.evaluation.get("scopes") or {}:
        few, full = _learners(report, scope, full=False), _learners(report, scope, full=True)
        measured = [figures for figures in (*few.values(), *full.values()) if figures]
        wanted = _DOUBT if doubt else _ACCURACY
        columns = [name for name in wanted if any(finite(figures.get(name)) is not None for figures in measured)]
        if not columns:
            continue
        rows = []
        for learner in dict.fromkeys((*few, *full)):
            is_prediction = learner == report.evaluation.get("prediction")
            cells = [_cells(figures.get(learner), columns, doubt) for figures in (full, few)]
            rows += _pair(report, learner_name(learner), cells, is_prediction)
        headings = [_column(name, measured) for name in columns]
        if not doubt:
            headings.insert(1 if columns[0] == "dice" else 0, "Dice per image, mean ± SD")
        tables.append(FigureTable(f"Every learner, {scope_name(scope)}", headings, rows))
    return tables


def _column(name: str, measured: Sequence[Figures]) -> str:
    if name in ("hd95", "assd"):
        unit = next((figures["surface_unit"] for figures in measured if figures.get("surface_unit")), None)
        return f"{FIGURE_NAMES[name]}, {unit}" if unit else FIGURE_NAMES[name]
    return FIGURE_NAMES[name]


def _pair(report: RunReport, name: str, cells: Sequence[list[str]], is_prediction: bool = False) -> list[Row]:
    """The rows of full precision, where it was scored, and of few bits; the first one alone has the name."""
    full, few = cells
    rows = [Row(name, few_label(report), few, is_prediction)]
    if report.evaluation.get("full_precision"):
        rows = [Row(name, "full precision", full, is_prediction), rows[0]._replace(learner="")]
    return rows


def _cells(figures: Figures | None, columns: Sequence[str], doubt: bool) -> list[str]:
    figures = figures or {}
    cells = [number(figures.get(name), _DIGITS.get(name, 4), _MISSING) + _count(figures, name) for name in columns]
    if not doubt:
        cells.insert(1 if columns[0] == "dice" else 0, _spread(figures))
    return cells


def _count(figures: Figures, name: str) -> str:
    """Of a mean over images, how many it is of, where some have none: whoever finds nothing in one has no distance."""
    values = ((figures.get("per_image") or {}).get(name) or {}).get("values") or []
    defined = sum(value is not None for value in values)
    return f" ({defined} of {len(values)})" if name in ("hd95", "assd") and 0 < defined < len(values) else ""


def _spread(figures: Figures) -> str:
    dice = (figures.get("per_image") or {}).get("dice") or {}
    mean, std = finite(dice.get("mean")), finite(dice.get("std"))
    if mean is None:
        return _MISSING
    return number(mean, 3) if std is None else f"{mean:.3f} ± {std:.3f}"


def class_table(report: RunReport) -> FigureTable | None:
    """The prediction's figures of each class; None for a binary task."""
    scope = main_scope(report)
    classes = prediction_figures(report, scope).get("per_class")
    if not classes or scope is None:
        return None
    before = prediction_figures(report, scope, full=True).get("per_class") or {}
    columns = [name for name in _ACCURACY if any(name in figures for figures in classes.values())]
    rows = []
    for name, figures in classes.items():
        rows += _pair(report, name, [_cells(of, columns, doubt=True) for of in (before.get(name), figures)])
    headings = [_column(name, [prediction_figures(report, scope)]) for name in columns]
    return FigureTable(f"The prediction, class by class, {scope_name(scope)}", headings, rows)


def object_table(report: RunReport) -> FigureTable | None:
    """How well single objects were found; None where a set does not tell them apart."""
    objects = report.evaluation.get("objects")
    if not objects:
        return None
    before = (report.evaluation.get("full_precision") or {}).get("objects")
    columns = [name for name in _OBJECTS if name in objects]
    rows = _pair(report, "all images", [_cells(of, columns, doubt=True) for of in (before, objects)])
    unit = objects.get("object_distance_unit", "pixels")
    headings = [
        f"{FIGURE_NAMES[name]}, {unit}" if name.endswith("hausdorff") else FIGURE_NAMES[name] for name in columns
    ]
    counts = f"{objects['objects_found']} found, {objects['objects_true']} true"
    return FigureTable(f"The prediction, object by object: {counts}", headings, rows)


def image_rows(report: RunReport) -> list[tuple[str, str, str]]:
    """For every image its name and the prediction's Dice, few bits and full precision; lowest first."""
    scope = main_scope(report)
    ids = list(report.evaluation.get("images") or ())
    few = per_image_dice(report, scope)
    full = per_image_dice(report, scope, full=True)
    if len(few) != len(ids):
        return []
    if len(full) != len(ids):
        full = [None] * len(ids)

    def rank(index: int) -> tuple[bool, float]:
        value = finite(few[index])
        return (value is None, value or 0.0)

    order = sorted(range(len(ids)), key=rank)
    return [(str(ids[i]), number(few[i], 4, _MISSING), number(full[i], 4, _MISSING)) for i in order]


def per_image_dice(report: RunReport, scope: str | None, full: bool = False) -> list[Any]:
    """The prediction's Dice of every image, in the order of the images; empty where it was not measured."""
    figures = prediction_figures(report, scope, full)
    return list(((figures.get("per_image") or {}).get("dice") or {}).get("values") or ())


def diversity_figures(report: RunReport) -> list[Tile]:
    """Disagreement and Q-statistic of the base learners' masks."""
    few = report.evaluation.get("diversity") or {}
    full = (report.evaluation.get("full_precision") or {}).get("diversity") or {}
    names = {"disagreement": "Pairwise disagreement", "q_statistic": "Q-statistic"}
    notes = {
        "disagreement": "share of pixels where two base learners differ",
        "q_statistic": "1: same errors; 0: unrelated",
    }
    tiles = []
    for key, name in names.items():
        note = notes[key]
        if finite(full.get(key)) is not None:
            note += f"; full precision {number(full[key])}"
        tiles.append(Tile(name, number(few.get(key)), note))
    return tiles


def diversity_bars(report: RunReport) -> list[Bar]:
    """Mean pairwise CKA of the base learners' features at each tap, in the order of the network."""
    few = (report.evaluation.get("diversity") or {}).get("cka") or {}
    full = ((report.evaluation.get("full_precision") or {}).get("diversity") or {}).get("cka") or {}
    bars = []
    for tap, value in few.items():
        before = number(full[tap], 3) if tap in full else None
        bars.append(Bar(tap, number(value, 3), _share(value), before, _share(full.get(tap))))
    return bars


def _share(value: Any) -> float | None:
    known = finite(value)
    return None if known is None else min(1.0, max(0.0, known))
