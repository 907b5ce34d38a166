"""The published tables, written from the results that are kept: nothing in them is typed by anybody."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from d2ed2q.deploy.cleaning import MaskRule
from d2ed2q.errors import ConfigError
from d2ed2q.files import write_text
from d2ed2q.recipes.experiment_check import read_results
from d2ed2q.recipes.experiment_figures import Seeds, difference, figures_of, scope_of, spread
from d2ed2q.recipes.experiment_file import TABLE, Experiment, Line, ResultTable, read_experiment, read_table
from d2ed2q.recipes.experiment_settings import ExperimentTableSettings
from d2ed2q.recipes.goals import goals_table
from d2ed2q.recipes.measured_tables import measured_tables
from d2ed2q.recipes.settings import SCORED_IMAGES

__all__ = ["comparison", "details", "overview", "results_page", "write_tables"]

START, END = "<!-- results -->", "<!-- /results -->"
_VIEWS = ("meta", "ensemble", "base_mean", "network")
_WHERE = {"fov": "inside the field of view", "whole": "whole image"}
_PAGE = """# Results

Every table here is written by `d2ed2q experiment table`: those of trainings from `experiments/results/`, a JSON file
for each experiment and seed, with the command, seed, machine, versions, date and the checksums of the images; the last
three from `experiments/budget`, `experiments/doubt` and `experiments/thresholds`. Quantities: [evaluation in
training.md](training.md#evaluation).

± is the standard deviation over seeds. Where a figure has none, it is of one seed: what is nearer than a few
thousandths may be chance, and nothing is tested. Of two seeds or more, a difference whose 95 % interval (Student's t)
holds zero reads "no difference seen", and a goal inside that of its figure "within chance". The interval of two seeds
is nine standard deviations wide on each side: these words mean little then but that two seeds cannot tell. A table
tests many differences, and nothing is corrected for that.

**Float and few bits.** Every step of quantization retrains what is still free, so few-bit weights have had more epochs
than the float ones beside them (`epochs_q` of the configuration for each step, as a rule four). A difference between
the two is that of bits and of retraining together. Rows in 8 bits, which lose next to nothing by themselves, show what
retraining alone does.

**Rows side by side.** The fourth column of such tables is AUC (of several classes, Dice) less that of the row on the
same images that is marked as the reference, seed by seed; where it has fewer seeds than the row, they are named. AURC
is the area under the risk–coverage curve, CKA the similarity of the base learners' features, and masks disagree in that
part of the pixels, a mean over pairs of base learners; for the rest see the link above. Minutes are of the processor
that the result's file names, which differs between rows."""
_CURRENT = "## Current recipes"
_EARLIER = """## Earlier recipes

What the recipes above were found from, with the same images. Which images thresholds are of, and whether specks were
taken out of the masks, differs and is said above each table; a difference in Dice may be that. The recipe of ISBI 2012
was chosen among these by the very images that it is scored on, six of one fold: its figures flatter it."""


def _title(result: dict[str, Any]) -> str:
    scored, trained = (result.get(f"{key}_title", result[key]) for key in ("dataset", "trained_on"))
    return scored if result["trained_on"] == result["dataset"] else f"{scored}, by a model of {trained}"


def _bits(result: dict[str, Any]) -> str:
    bits = sorted(set(result["bits"] or ()))
    return f"{'/'.join(map(str, bits))} bits" if bits else "float"


def _cleaned(result: dict[str, Any]) -> str:
    """What is done to masks after the threshold."""
    words = str(MaskRule(**(result.get("cleaning") or {})))
    return f"; {words}" if words else ""


def _of_base_learners(seeds: Seeds, weights: str, figure: str) -> str:
    """From the lowest to the highest base learner, each a mean over seeds; "–" of a network alone."""
    lowest, highest = [], []
    for result in seeds:
        found = [figures_of(result, weights, f"base_{k}").get(figure) for k in range(1, result["learners"] + 1)]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return "–"
        lowest.append(min(known))
        highest.append(max(known))
    return f"{statistics.fmean(lowest):.4f} to {statistics.fmean(highest):.4f}"


def _threshold_images(result: dict[str, Any]) -> str:
    split = result["split"]
    if result.get("training_images") == "all":
        count = "all" if result["threshold_images"] == "all" else split["validation"]
        return f"{count} of the {split['train']} training images"
    if result.get("threshold_images") == "all":
        return f"all {split['train'] + split['validation']} training and validation images"
    return f"{split['validation']} validation images"


def _all_of(words: Iterable[str]) -> str:
    return " or ".join(sorted(set(words)))


def _days(seeds: Seeds) -> str:
    days = sorted({result["date"][:10] for result in seeds})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def _count(result: dict[str, Any]) -> str:
    return f"{result['learners'] + 1} × {result['backbone']}"


def overview(results: Mapping[str, Seeds]) -> str:
    """A row for each experiment: the prediction, in full precision and in few bits."""
    lines = [
        "| data | images scored | network | AUC, float → few bits | Dice, float → few bits | base learners' Dice | "
        "object F1 | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in results.items():
        first = seeds[0]

        def pair(figure: str, seeds: Seeds = seeds) -> str:
            before, after = (
                spread([figures_of(result, weights, "prediction").get(figure) for result in seeds])
                for weights in ("full_precision", "few_bit")
            )
            return after if seeds[0]["full_precision"] is None else f"{before} → {after}" if after != "–" else "–"

        objects = [(result.get("objects") or {}).get("few_bit", {}).get("object_f1") for result in seeds]
        cells = [
            f"[{_title(first)}](experiments/results/{name}-seed{first['seed']}.json)",
            f"{first['images']}, {_WHERE[scope_of(first)]}{', without specks' if _cleaned(first) else ''}",
            f"{_count(first)}, {_bits(first)}",
            pair("auc"),
            pair("dice"),
            _of_base_learners(seeds, "few_bit", "dice"),
            spread(objects, 3),
            f"{statistics.fmean(result['training_minutes'] for result in seeds):.0f} min, "
            f"{_all_of(result['machine'].rpartition(', ')[2] for result in seeds)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def details(seeds: Seeds) -> str:
    """One experiment: every view, in full precision and in few bits."""
    first = seeds[0]
    bits, scope, name = _bits(first), scope_of(first), first["name"]
    files = ", ".join(
        f"[all figures of seed {result['seed']}](../experiments/results/{name}-seed{result['seed']}.json)"
        for result in seeds
    )
    minutes = statistics.fmean(result["training_minutes"] for result in seeds)
    ranking = [figure for figure in ("auc",) if figure in figures_of(first, "few_bit", "prediction")]
    headings = {"auc": "AUC", "dice": "Dice", "ece": "calibration error"}
    figures = (*ranking, "dice", "ece")
    weights = ("full_precision", "few_bit") if first["full_precision"] is not None else ("few_bit",)
    columns = [f"{headings[figure]}, float | {bits}" if len(weights) > 1 else headings[figure] for figure in figures]
    lines = [
        f"**{_title(first)}**: {first['images']} {SCORED_IMAGES[first['scored']]}, {_WHERE[scope]}, pixels pooled, "
        f"{f'thresholds from {_threshold_images(first)}' if ranking else 'the most probable class'}{_cleaned(first)}; "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(str(result['seed']) for result in seeds)}, "
        f"{minutes:.0f} minutes of training on {_all_of(result['machine'] for result in seeds)}, {_days(seeds)} "
        f"([configuration](../experiments/{first['experiment']}.toml), {files}):",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (1 + len(weights) * len(figures)) + "|",
    ]
    labels = {view: view.replace("_", " ") for view in _VIEWS if view in first["few_bit"][scope]}
    chosen = list(dict.fromkeys(result["prediction"] for result in seeds))
    if len(chosen) == 1:
        labels[chosen[0]] = f"**{chosen[0]}** (the prediction)"
    else:  # each seed's validation images chose
        labels = {"prediction": f"**the prediction** ({' or '.join(chosen)})"} | labels
    for view, label in labels.items():
        cells = [
            spread([figures_of(result, source, view).get(figure) for result in seeds])
            for figure in figures
            for source in weights
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if first["learners"]:
        cells = [_of_base_learners(seeds, source, figure) for figure in figures for source in weights]
        lines.append("| base learners, lowest to highest | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison(table: ResultTable, rows: Sequence[tuple[Experiment, Seeds]]) -> str:
    """Experiments of one folder side by side: accuracy, calibration, diversity and cost.

    Args:
        table: how they are shown; differences to the reference are of AUC (of several classes Dice), paired by seed;
            none where another fold is scored.
        rows: experiments in the order of the table, with their results; those without are shown as not measured.
    """
    lines = [
        f"## {table.title}",
        "",
        *([table.text.strip(), ""] if table.text else []),
        "| | learners | AUC | less the reference's | Dice | calibration error | AURC | masks disagree | CKA | "
        "MB | training | seeds |",
        "|---" * 12 + "|",
    ]
    references: dict[tuple[Any, ...], dict[int, float]] = {}
    for experiment, seeds in rows:
        if _is_reference(experiment, table):
            scores = {result["seed"]: _score(result, experiment.lines[0]) for result in seeds}
            references[_scored(experiment)] = {seed: score for seed, score in scores.items() if score is not None}
    for experiment, seeds in rows:
        if not seeds:
            lines.append(f"| {experiment.title} | not measured |" + " |" * 10)
            continue
        same = references.get(_scored(experiment), {})
        for index, line in enumerate(experiment.lines):
            reference = index == 0 and _is_reference(experiment, table)
            lines.append(_row(experiment, line, seeds, None if reference else same))
    return "\n".join(lines)


def _scored(experiment: Experiment) -> tuple[Any, ...]:
    """Which images it is scored on: of which dataset, and which of them are left out of its training."""
    return experiment.data, experiment.values.get("folds"), experiment.values.get("fold")


def _score(result: dict[str, Any], line: Line) -> float | None:
    """AUC, or Dice of several classes; None where these weights were not scored."""
    figures = figures_of(result, line.weights, line.view)
    return figures.get("auc", figures.get("dice"))


def _is_reference(experiment: Experiment, table: ResultTable) -> bool:
    return experiment.name in table.references


def _less(scores: Mapping[int, float | None], reference: Mapping[int, float]) -> str:
    known = {seed: score for seed, score in scores.items() if score is not None}
    paired = {seed: score - reference[seed] for seed, score in known.items() if seed in reference}
    few = f" (seeds {', '.join(map(str, paired))})" if 0 < len(paired) < len(scores) else ""
    return difference(list(paired.values())) + few


def _row(experiment: Experiment, line: Line, seeds: Seeds, reference: Mapping[int, float] | None) -> str:
    """One line of a table; ``reference`` has the scores to compare with, by seed, None where this line has them."""

    def column(figure: str) -> list[float | None]:
        return [figures_of(result, line.weights, line.view).get(figure) for result in seeds]

    scores = {result["seed"]: _score(result, line) for result in seeds}
    alone = line.view.startswith("base_") and line.view != "base_mean"
    full = line.weights == "full_precision" and seeds[0]["full_precision"] is not None
    diversity = [None if alone else result.get("diversity_full_precision" if full else "diversity") for result in seeds]
    cka = [
        statistics.fmean(values) if values else None
        for values in ([v for v in (found or {"cka": {}})["cka"].values() if v is not None] for found in diversity)
    ]
    unknown = not alone and bool(seeds[0]["learners"]) and None in diversity
    few = line.weights == "few_bit" and seeds[0]["bits"] is not None
    size = [result["bytes"]["ensemble_few_bit" if few else "ensemble_float"] / 1e6 for result in seeds]
    cells = [
        line.label or experiment.title,
        f"1 × {seeds[0]['backbone']}" if alone else _count(seeds[0]),
        spread(column("auc")),
        "reference" if reference is None else _less(scores, reference),
        spread(column("dice")),
        spread(column("ece")),
        spread(column("aurc")),
        *(("not recorded",) * 2 if unknown else (spread([d and d["disagreement"] for d in diversity]), spread(cka, 2))),
        "–" if alone else f"{statistics.fmean(size):.2f}",
        f"{statistics.fmean(result['training_minutes'] for result in seeds):.0f} min",
        ", ".join(str(result["seed"]) for result in seeds),
    ]
    return "| " + " | ".join(cells) + " |"


def _single(folder: Path, results: Mapping[str, Seeds]) -> tuple[dict[str, Seeds], dict[str, Seeds]]:
    """Results of current experiments, and of superseded ones; of those in folders only what supersedes another one."""
    better = {
        name: read_experiment(folder, seeds[0]["experiment"]).superseded_by
        for name, seeds in results.items()
        if "/" not in name
    }
    current = {
        name: seeds
        for name, seeds in results.items()
        if (better[name] is None if name in better else name in better.values())
    }
    return current, {name: results[name] for name in better if name not in current}


def _without_parts(folder: Path, results: Mapping[str, Seeds]) -> dict[str, Seeds]:
    """Leaves out what was scored on a part of an unseen set of which all images were scored as well."""
    kept = {}
    for name, seeds in results.items():
        others = read_experiment(folder, seeds[0]["experiment"]).others
        whole = {other.data for other in others if other.split == "all" and other.name in results}
        if not any(other.name == name and other.split != "all" and other.data in whole for other in others):
            kept[name] = seeds
    return kept


def results_page(folder: Path, results: Mapping[str, Seeds]) -> str:
    """The whole of docs/results.md.

    Args:
        folder: of all experiments.
        results: of :func:`read_results`.
    """
    current, earlier = _single(folder, results)
    parts = [_PAGE, *goals_table(folder, results), _CURRENT, *map(details, current.values())]
    if earlier:
        parts += [_EARLIER, *map(details, earlier.values())]
    for path in sorted(folder.rglob(TABLE)):
        table = read_table(folder, path.parent.relative_to(folder).as_posix())
        rows = [(read_experiment(folder, row), results.get(row, [])) for row in table.order]
        if any(seeds for _, seeds in rows):
            parts.append(comparison(table, rows))
    parts += measured_tables(folder)
    return "\n\n".join(parts) + "\n"


def write_tables(settings: ExperimentTableSettings) -> list[Path]:
    """Puts the table of all results into README.md and the long ones into docs/results.md, beside the folder.

    Returns:
        list[Path]: the files that changed.

    Raises:
        ConfigError: there is no README.md with the marks between which the table goes; or, with ``check``, a table is
            not what the results give.
    """
    root = settings.folder.resolve().parent
    readme, page = root / "README.md", root / "docs" / "results.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if "\ufffd" in text:  # it would be written back with what could not be read lost
        raise ConfigError(f"{readme} is not valid UTF-8; save it as UTF-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ConfigError(f"{readme} needs the marks {START} and {END} once, between which the table goes")
    results = read_results(settings.folder)
    current, _ = _single(settings.folder, results)
    before, rest = text.split(START)
    wanted = {
        readme: f"{before}{START}\n{overview(_without_parts(settings.folder, current))}\n{END}{rest.split(END)[1]}",
        page: results_page(settings.folder, results),
    }
    changed = [
        path for path, content in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != content
    ]
    if settings.check and changed:
        raise ConfigError(f"{changed[0]} is not what the results give; run: d2ed2q experiment table")
    for path in changed:
        write_text(path, wanted[path])
    return changed
