"""Score a trained run on a dataset, in full precision and few bits, and write its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from d2ed2q.data import Case, Dataset, checksums, checksums_both, open_dataset
from d2ed2q.errors import DataError
from d2ed2q.files import require_place
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.run_data import require_held_out, seen_images
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.scoring import score
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["evaluate"]


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Scores a run and writes ``evaluation.json`` and ``report.html`` into its folder, or another.

    Returns:
        dict: the content of ``evaluation.json``.

    Raises:
        RunFolderError: the run has not finished.
        CheckpointError: its weights cannot be used.
        DataError: the images cannot be used, or were trained on.
        ConfigError: a scale that cannot be, or a split that this run does not have.
    """
    torch.set_flush_denormal(True)
    run = RunFolder(settings.run)
    card = run.read_card()
    if settings.scale is not None:
        card = dataclasses.replace(card, resize=None, spacing=None, scale=settings.scale)
        _ = card.resolution  # which checks itself
    split, dataset, cases, digests = _cases(run, settings)
    if dataset.dims != card.dims:
        raise DataError(f"{dataset.root} has images of {dataset.dims} dimensions, but the model takes {card.dims}")
    dataset = dataclasses.replace(dataset, intensity=card.intensity)
    if dataset.channels != card.in_channels:
        raise DataError(
            f"{dataset.root} has images of {dataset.channels} channels, but the model takes {card.in_channels}"
        )
    if len(dataset.classes) != len(card.classes):
        raise DataError(
            f"{dataset.root} has the classes {', '.join(dataset.classes)}, but the model was trained on "
            f"{', '.join(card.classes)}"
        )
    if dataset.classes != card.classes and set(dataset.classes) == set(card.classes):
        raise DataError(
            f"{dataset.root} numbers its classes {', '.join(dataset.classes)}, but the model was trained on "
            f"{', '.join(card.classes)}; give them the same order (classes.txt, or the labels of dataset.json)"
        )
    written = RunFolder(settings.folder)
    written.require_writable()
    if settings.json is not None:
        require_place(settings.json)
    tta = settings.tta or card.tta
    ensemble = run.load()
    compared = settings.full_precision and card.bits is not None
    few_bit = score(ensemble, card, dataset, cases, tta, sets=2 if compared else 1)
    full = score(run.load(full_precision=True), card, dataset, cases, tta) if compared else None
    result = {
        "run": str(run.path),
        "dataset": {"name": dataset.name, "title": dataset.title, "root": str(dataset.root.resolve()), "split": split},
        "images": [case.id for case in cases],
        "sha256": digests,
        "tta": tta,
        "scale": card.scale,
        "cleaning": None if card.cleaning is None else dataclasses.asdict(card.cleaning),
        **few_bit.figures,
        "full_precision": full.figures if full is not None else None,
        "environment": environment(),
    }
    run.write_json(written.evaluation, result)
    from d2ed2q.recipes.report import write_run_report  # matplotlib is slow to import

    write_run_report(run, written, card, ensemble, dataset, cases, few_bit, full, result)
    if settings.json is not None:
        run.write_json(settings.json, result)
    return result


def _holds_fold(recorded: Mapping[str, Any], everything: Mapping[str, Case]) -> bool:
    """Whether the images of the fold that was left out are here, wherever that is: a copy of the dataset."""
    fold = recorded["splits"].get("fold", ())
    if not fold or not all(id in everything for id in fold):
        return False
    digests = checksums([everything[id] for id in fold], images=True)
    return all(digest == recorded["image_sha256"][id] for id, digest in digests.items())


def _cases(run: RunFolder, settings: EvaluateSettings) -> tuple[str, Dataset, Sequence[Case], dict[str, str]]:
    """What is scored: the split, the dataset, the cases with labels, and the SHA-256 of their files."""
    recorded = run.read_json(run.data)
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    trained_on = Path(recorded["root"])
    root = settings.data or trained_on
    same_place = root.resolve() == trained_on.resolve()
    if settings.data is None and not root.is_dir():
        raise DataError(f"the run's images are not at {root}; pass their folder with --data")
    name = trained.dataset if same_place and settings.dataset == "auto" else settings.dataset
    dataset = open_dataset(root, name)
    everything = {case.id: case for case in dataset.cases}
    split: str = settings.split
    if split == "auto":
        here = (same_place and "fold" in recorded["splits"]) or _holds_fold(recorded, everything)
        split = "fold" if here else "test"
    if split in ("validation", "fold"):
        if split not in recorded["splits"]:
            raise DataError(f"{run.path} was trained without folds; score its test or validation images")
        if split == "validation":
            require_held_out(trained, "--split validation")
        missing = [id for id in recorded["splits"][split] if id not in everything]
        if missing:
            raise DataError(f"{root} lacks the {split} image {missing[0]} of this run; pass the data it was trained on")
        chosen: Sequence[Case] = [everything[id] for id in recorded["splits"][split]]
    else:
        if not dataset.test:  # a set without test images is all unseen, or refused below
            split = "all"
        chosen = dataset.test if split == "test" else tuple(everything.values())
    digests, of_images = checksums_both(chosen)
    known_then = split in ("validation", "fold") or (settings.data is None and recorded["splits"].get("test"))
    if known_then:
        changed = [id for id, digest in digests.items() if digest != recorded["sha256"].get(id)]
        if changed:
            raise DataError(
                f"{len(changed)} of {len(chosen)} {split} images at {root}, or their masks, are not those of this run "
                f"({changed[0]} is one); pass the data it was trained on, or others, with --data"
            )
    if split != "validation":
        # Of the images alone: the same photograph with another annotator's mask was still trained on.
        seen = seen_images(run)
        known = [id for id, digest in of_images.items() if digest in seen]
        if known:
            raise DataError(
                f"{len(known)} of {len(chosen)} images at {root} were used in training ({known[0]} is one); "
                f"put unseen images into a test/ subfolder, train with --folds, or pass --split validation"
            )
    labelled = [case for case in chosen if case.labelled]
    if not labelled:
        raise DataError(f"no image at {root} has a mask to score against; use: d2ed2q predict")
    return split, dataset, labelled, {case.id: digests[case.id] for case in labelled}
