"""Results as tables on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from d2ed2q.deploy import Manifest
from d2ed2q.limits import cores_in_words
from d2ed2q.recipes.console import counted

if TYPE_CHECKING:  # bundles run where PyTorch is not installed
    from d2ed2q.data import CheckReport

__all__ = [
    "bench_tables",
    "bundle_tables",
    "check_tables",
    "export_lines",
    "figures_table",
    "folds_tables",
    "inspection_tables",
    "search_tables",
    "sweep_tables",
    "zoo_tables",
]

_SCOPES = {"fov": "inside the region of interest", "whole": "whole image"}
_FIGURES = ("dice", "auc", "average_precision", "sensitivity", "specificity", "cldice", "ece")


def _number(value: Any, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def figures_table(result: Mapping[str, Any]) -> list[Table]:
    """For each scope a table: a row a view, full precision beside few bits.

    Args:
        result: the content of ``evaluation.json``.
    """
    tables = []
    full = result.get("full_precision")
    for scope, learners in result["scopes"].items():
        present = [name for name in _FIGURES if any(name in figures for figures in learners.values())]
        table = Table(title=f"{len(result['images'])} images, {_SCOPES[scope]}, pixels pooled", title_justify="left")
        table.add_column("learner")
        table.add_column("weights")
        for name in present:
            table.add_column(name.replace("_", " "), justify="right")
        for view, figures in learners.items():
            label = f"{view} ←" if view == result["prediction"] else view
            if full is not None:
                row = full["scopes"][scope][view]
                table.add_row(label, "full precision", *(_number(row.get(name)) for name in present))
                label = ""
            table.add_row(
                label, "finished" if full is None else "few-bit", *(_number(figures.get(name)) for name in present)
            )
        table.caption = "← the prediction"
        tables.append(table)
    objects = result.get("objects")
    if objects:
        table = Table(title="objects of the prediction", title_justify="left")
        shown = [name for name in objects if name.startswith("object_") and isinstance(objects[name], float)]
        table.add_column("weights")
        for name in shown:
            table.add_column(name.removeprefix("object_"), justify="right")
        for label, source in (("full precision", full), ("finished" if full is None else "few-bit", result)):
            if source is not None and source.get("objects"):
                table.add_row(label, *(_number(source["objects"].get(name)) for name in shown))
        tables.append(table)
    return tables


def folds_tables(summary: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q folds`` shows.

    Args:
        summary: of :func:`~d2ed2q.recipes.folds.summarize_folds`.
    """
    tables: list[Table | str] = []
    for scope, figures in summary["few_bit"].items():
        names = [name for name in (*_FIGURES, *(n for n in figures if n.startswith("object_"))) if name in figures]
        table = Table(title=f"the prediction on the folds left out, {_SCOPES.get(scope, scope)}", title_justify="left")
        for column in ("fold", *(name.replace("_", " ") for name in names)):
            table.add_column(column, justify="left" if column == "fold" else "right")
        for index, fold in enumerate(summary["scored"]):
            table.add_row(str(fold), *(_number(figures[name]["values"][index]) for name in names))
        full = summary["full_precision"]
        for label, source in (("mean, full precision", full[scope] if full else None), ("mean", figures)):
            if source is not None:
                table.add_row(label, *(_spread(source[name]) for name in names))
        tables.append(table)
    if summary["missing"]:
        tables.append(f"folds {', '.join(map(str, summary['missing']))} of {summary['folds']} are missing")
    return tables


def _spread(figure: Mapping[str, Any]) -> str:
    spread = "" if figure["std"] is None else f" ± {figure['std']:.4f}"
    return f"{_number(figure['mean'])}{spread}"


def inspection_tables(facts: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q inspect`` shows.

    Args:
        facts: of :func:`~d2ed2q.recipes.inspect_run.inspect_run`.
    """
    learners = Table(title=f"{facts['backbone']}, codebook {facts['codebook'] or 'none'}", title_justify="left")
    for name in ("learner", "weights in scope", "bits", "distinct values a channel", "entropy (bits a weight)"):
        learners.add_column(name, justify="left" if name == "learner" else "right")
    for name, row in facts["learners"].items():
        bits = "32" if row["bits"] is None else str(row["bits"])
        learners.add_row(
            name, f"{row['quantized_weights']:,}", bits, str(row["distinct_per_channel"]), f"{row['entropy']:.2f}"
        )
    tensors = Table(title="tensors", title_justify="left")
    for name in ("tensor", "shape", "bits", "distinct", "distinct a channel", "entropy"):
        tensors.add_column(name, justify="left" if name in ("tensor", "shape") else "right")
    for row in facts["tensors"]:
        tensors.add_row(
            row["name"],
            "×".join(map(str, row["shape"])),
            "32" if row["bits"] is None else str(row["bits"]),
            str(row["distinct"]),
            str(row["distinct_per_channel"]),
            f"{row['entropy']:.2f}",
        )
    sizes = facts["bytes"]
    lines = [
        f"prediction: {facts['prediction']} at threshold {facts['threshold']:.3f}",
        f"parameters: {facts['parameters']:,}",
        f"one learner in float32: {sizes['one_float_learner']:,} bytes",
        f"ensemble in float32: {sizes['ensemble_float']:,} bytes",
    ]
    if sizes["ensemble_few_bit"] is not None:
        ratio = sizes["ensemble_few_bit"] / sizes["one_float_learner"]
        lines.append(
            f"ensemble in few bits, by entropy: {sizes['ensemble_few_bit']:,} bytes ({ratio:.2f} × one float learner)"
        )
    return [tensors, learners, "\n".join(lines)]


def export_lines(manifest: Manifest, out: Path) -> list[str]:
    """What ``d2ed2q export`` says in the end."""
    accuracy, weights = manifest.accuracy, manifest.weights
    size = out.stat().st_size + (out.with_suffix(".bin").stat().st_size if out.suffix == ".xml" else 0)
    exact = "exact" if weights.exact else f"rounded a second time, by up to {weights.error:.2%} of a tensor's norm"
    lines = [
        f"weights: {weights.tensors} tensors in int8, {exact}",
        f"on {accuracy.images} validation images, as trained and exported: Dice {accuracy.dice[0]:.4f} and "
        f"{accuracy.dice[1]:.4f}" + (f", AUC {accuracy.auc[0]:.4f} and {accuracy.auc[1]:.4f}" if accuracy.auc else ""),
        f"size: {size:,} bytes, {size / (4 * weights.learner_parameters):.2f} × one float learner's parameters",
    ]
    if manifest.activations.float_layers:
        lines.insert(1, f"kept in float32: {', '.join(manifest.activations.float_layers)}")
    if manifest.refusal is not None:
        bound = manifest.refusal
        lines.append(
            f"refusal: above a doubt of {bound.doubt:.3f} ({bound.refused:.0%} of unusable and {1 - bound.kept:.0%} of "
            f"usable images, {bound.images} untouched and spoilt validation images)"
        )
    return [*lines, f"exported: {out}"]


def bundle_tables(facts: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q inspect`` shows of a bundle.

    Args:
        facts: of :func:`~d2ed2q.recipes.inspect_bundle.inspect_bundle`.
    """
    parts = Table(title="parts", title_justify="left")
    for name in ("part", "bytes", "SHA-256"):
        parts.add_column(name, justify="right" if name == "bytes" else "left")
    for name, part in facts["manifest"]["parts"].items():
        parts.add_row(name, f"{part['bytes']:,}", part["sha256"])
    test = facts["self_test"]
    verdict = "passed" if test["passed"] else "FAILED"
    lines = [
        f"file: {facts['path']}, {facts['size']:,} bytes, {facts['size'] / facts['one_float_learner']:.2f} × one float "
        f"learner's parameters",
        f"SHA-256: {facts['sha256']}",
        f"self-test in {test['engine']} {test['version']}: {verdict}; probabilities of the sample differ from the "
        f"stored ones by {test['largest']:.4f} at most, {test['mean']:.5f} on average; {test['far']:.1%} by over 0.1",
    ]
    return [facts["card"], parts, "\n".join(lines)]


def bench_tables(result: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q bench`` shows.

    Args:
        result: of :func:`~d2ed2q.recipes.bench.bench`.
    """
    environment, size = result["environment"], _size(result["size"], "")
    table = Table(
        title=f"{result['backbone']}, {size}, {environment['processor']}, {cores_in_words(result['threads'])}",
        title_justify="left",
    )
    columns = (
        "network",
        "engine",
        "median ms",
        "p95 ms",
        "images/s",
        "first result s",
        "peak MB",
        "MB on disk",
        "GFLOP/s",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:2] else "right")
    for row in result["rows"]:
        work = row.get("operations")
        table.add_row(
            row["network"],
            row["engine"],
            f"{row['median_seconds'] * 1e3:.1f}",
            f"{row['p95_seconds'] * 1e3:.1f}",
            f"{row['images_per_second']:.2f}",
            f"{row['load_seconds']:.2f}",
            f"{row['peak_memory'] / 1e6:.0f}",
            f"{row['bytes'] / 1e6:.2f}",
            "–" if work is None else f"{work / row['median_seconds'] / 1e9:.0f}",
        )
    lines = [f"{ratio:.2f} × {name}" for name, ratio in result["ratios"].items()]
    lines += [f"left out: {what}: {why}" for what, why in result.get("left_out", {}).items()]
    lines.append(f"{result['bytes_ratio']:.2f} × bytes of the bundle / one float network's parameters")
    if result["int8_peak"] is not None:
        lines.append(f"int8 peak of this machine, a large matrix product: {result['int8_peak'] / 1e9:.0f} GFLOP/s")
    return [table, "\n".join(lines)]


def search_tables(result: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q quantize --search`` shows.

    Args:
        result: of :func:`~d2ed2q.recipes.search_bits.search_bits`.
    """
    metric = "Dice" if result["metric"] == "dice" else "AUC"
    uniform = [point for point in result["points"] if point["kind"] == "uniform"]
    codebooks = list(dict.fromkeys(point["codebook"] for point in uniform))
    same = Table(
        title=f"points of {metric} lost on {_images(result)}, same bits for all learners", title_justify="left"
    )
    alone = Table(title="one learner rounded, all others in full precision", title_justify="left")
    all_bits = sorted({point["bits"][0] for point in uniform}, reverse=True)
    for table, first in ((same, "codebook"), (alone, "learner")):
        table.add_column(first)
        for bits in all_bits:
            table.add_column(f"{bits} bits", justify="right")
    for codebook in codebooks:
        own = {point["bits"][0]: point for point in uniform if point["codebook"] == codebook}
        best = {point["bits"][0] for point in result["best_per_bits"] if point["codebook"] == codebook}
        marks = {bits: " ←" if bits in best and len(codebooks) > 1 else "" for bits in all_bits}
        same.add_row(codebook, *(f"{own[bits]['loss']:.2f}{marks[bits]}" for bits in all_bits))
        same.add_row("  MB by entropy", *(f"{own[bits]['bytes'] / 1e6:.3f}" for bits in all_bits))
    alone.add_column("fewest within tolerance", justify="right")
    points = [point for point in result["points"] if point["kind"] == "alone"]  # of one network there are none
    for index, name in enumerate(result["learners"] if points else ()):
        losses = {point["bits"][index]: point["loss"] for point in points if point["bits"][index] is not None}
        fewest = result["fewest_alone"][name]
        alone.add_row(name, *(f"{losses[b]:.2f}" for b in all_bits), "–" if fewest is None else str(fewest))
    chosen, full = result["chosen"], result["full_precision"]
    bits = " ".join(map(str, chosen["bits"]))
    return [
        same,
        *([alone] if points else []),
        f"found: {bits} bits, codebook {chosen['codebook']}, {chosen['bytes']:,} bytes by entropy instead of "
        f"{full['bytes']:,}; {chosen['loss']:.2f} points of {metric} lost on {_images(chosen)} before retraining",
        f"figures: {Path(result['run']) / 'search.json'}\npicture: {Path(result['run']) / 'search.png'}",
    ]


def _images(figures: Mapping[str, Any]) -> str:
    return counted(figures["images"], "validation image")


def check_tables(report: CheckReport) -> list[Table | str]:
    """What ``d2ed2q data check`` shows."""
    pairs = Table(title=f"layout: {report.layout or 'unknown'}", title_justify="left")
    for name in ("split", "case", "patient", "image", "mask", "region of interest"):
        pairs.add_column(name)
    for pair in report.pairs:
        region = "yes" if pair.case.roi is not None else "none"
        image = _size(pair.image_size, "unreadable")
        mask = _size(pair.label_size, "unreadable" if pair.case.labelled else "none")
        pairs.add_row(pair.split, pair.case.id, pair.case.patient, image, mask, region)
    patients = len({pair.case.patient for pair in report.pairs})
    whose = f"of {patients} patients" if patients < len(report.pairs) else "each taken for a patient of its own"
    verdict = f"{len(report.pairs)} pairs, {whose}; no problem found"
    if not report.ok:
        verdict = f"{counted(len(report.problems), 'problem')}:"
    shown: list[Table | str] = [pairs] if report.pairs else []
    notes = [f"note: {note}" for note in report.notes]
    return [*shown, verdict, *(f"- {problem}" for problem in report.problems), *notes]


def _size(size: Sequence[int] | None, otherwise: str) -> str:
    """Width first, as programs show it."""
    return otherwise if size is None else "×".join(map(str, reversed(size)))


def sweep_tables(result: Mapping[str, Any]) -> list[Table | str]:
    """What ``d2ed2q sweep`` shows: the ten best trials, and how the others ended.

    Args:
        result: of :func:`~d2ed2q.recipes.sweep.sweep`.
    """
    complete = sorted(
        (trial for trial in result["trials"] if trial["value"] is not None), key=lambda trial: -trial["value"]
    )
    states = Counter(trial["state"] for trial in result["trials"])
    table = Table(title=", ".join(f"{count} {state}" for state, count in states.items()), title_justify="left")
    names = list(complete[0]["settings"]) if complete else []
    for column in ("trial", f"validation {result['metric']}", *names):
        table.add_column(column)
    for trial in complete[:10]:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in trial["settings"].values())
        table.add_row(str(trial["number"]), f"{trial['value']:.4f}", *cells)
    return [table]


def zoo_tables(models: Mapping[str, tuple[int, Mapping[str, str]]]) -> list[Table | str]:
    """What ``d2ed2q zoo`` shows.

    Args:
        models: by name the bytes of each and what is said of it.
    """
    if not models:
        return ["no models come with this installation"]
    table = Table(title="models that come with d2ed2q (research use only)", title_justify="left")
    for column in ("name", *next(iter(models.values()))[1], "MB"):
        table.add_column(column)
    for name, (size, facts) in models.items():
        table.add_row(name, *facts.values(), f"{size / 1e6:.2f}")
    return [table, "use one by its name: d2ed2q predict NAME photo.jpg --out DIR"]
