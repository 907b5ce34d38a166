"""Quantize a finished run anew: from its full-precision weights, with other bits, into a run folder of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from d2ed2q.errors import ConfigError, RunFolderError
from d2ed2q.files import sha256_of
from d2ed2q.recipes.budget import NO_BUDGET
from d2ed2q.recipes.config import require_kept, settings_from
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_data import recorded_data
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train import train_phases
from d2ed2q.recipes.train_settings import ONE_DEVICE, TrainSettings
from d2ed2q.training import is_first_process, prepare_processor

__all__ = ["QUANTIZATION", "quantize", "with_found_bits"]

QUANTIZATION = ("bits", "codebook", "fractions", "random", "epochs_q", "lr_q")
"""The settings that a run quantized anew may have of its own; all else is as its float weights were trained."""
_CHANGES = (*QUANTIZATION, "device")


def quantize(settings: QuantizeSettings) -> RunFolder:
    """Runs the quantization phases of a training again, or what is left of them with ``settings.resume``.

    With the settings of the original run the weights are those of that run, to the bit: each phase begins with a fresh
    optimizer, and batches depend on the number of the epoch alone. Only fp16 is an exception, because its gradient
    scaler would have been trained along.

    Returns:
        RunFolder: the new run, finished.

    Raises:
        RunFolderError: the run has not finished, or the new folder exists.
        ConfigError: bits, codebook or fractions that cannot be.
        DataError: the images are not those that the run was trained on.
        CheckpointError: the full-precision weights are missing or changed.
        AccuracyError: with ``settings.search``, no bits are within the tolerance.
        Interrupted: stopped by Ctrl-C; the checkpoint is written.
    """
    prepare_processor()
    source = RunFolder(settings.run)
    source.read_card()
    if settings.search:
        from d2ed2q.recipes.search_bits import search_bits  # matplotlib is slow to import

        require_target(settings)
        settings = settings if settings.resume else with_found_bits(settings, search_bits(settings))
    if settings.out is None:
        raise ConfigError("quantize needs a folder for the new run: --out NEW")
    run = RunFolder(settings.out)
    require_target(settings)
    given = {name: value for name in _CHANGES if (value := getattr(settings, name)) is not None}
    base: TrainSettings = settings_from((run if settings.resume else source).config, TrainSettings)
    changed = dataclasses.replace(base, quantize=True, **ONE_DEVICE, **NO_BUDGET, **given)
    if settings.resume:
        _require_same_run(source, run, base, given)
    dataset, splits = recorded_data(source, settings.data)
    changed = dataclasses.replace(changed, data=dataset.root, out=settings.out, resume=settings.resume)
    return train_phases(run, changed, dataset, splits, source)


def require_target(settings: QuantizeSettings) -> None:
    """Checks that the new run can be begun, or resumed, before anything long is done.

    Raises:
        RunFolderError: it cannot.
    """
    if settings.out is None:
        return
    run = RunFolder(settings.out)
    if not settings.resume:
        if is_first_process():
            run.require_free()
        return
    run.require_resumable()


def with_found_bits(settings: QuantizeSettings, found: dict[str, Any]) -> QuantizeSettings:
    """The settings that train what a search has found.

    Args:
        settings: those of the search.
        found: of :func:`~d2ed2q.recipes.search_bits.search_bits`.
    """
    chosen = found["chosen"]
    return dataclasses.replace(
        settings, search=False, bits=tuple(chosen["bits"]), codebook=chosen["codebook"], codebooks=()
    )


def _require_same_run(source: RunFolder, run: RunFolder, begun: TrainSettings, given: dict[str, Any]) -> None:
    require_kept(run.path, begun, given)
    own = source.read_card().sha256.get(source.full_precision.name)
    if run.full_precision.exists() and sha256_of(run.full_precision) != own:
        raise RunFolderError(f"{run.path} was not begun from {source.path}; resume it with the run that it came from")
