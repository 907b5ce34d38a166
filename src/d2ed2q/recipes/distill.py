"""Distill an ensemble into one network: a student that learns the ensemble's mean beside the labels."""

from __future__ import annotations

import dataclasses
from typing import Any

from d2ed2q.recipes.budget import NO_BUDGET
from d2ed2q.recipes.config import require_kept, settings_from
from d2ed2q.recipes.distill_settings import DistillSettings
from d2ed2q.recipes.epochs_run import epochs_run
from d2ed2q.recipes.run_data import recorded_data
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import ONE_DEVICE, TrainSettings

__all__ = ["distill"]

_CHANGES = ("backbone", "taps", "epochs", "epochs_q", "quantize", "bits", "codebook", "lr", "lr_q", "seed", "device")


def distill(settings: DistillSettings) -> RunFolder:
    """Trains one network on the images of a finished run, with that run as its teacher.

    Everything that is not given is as the teacher was trained: resolution, crops, augmentation, bits, and the epochs
    that it had, whatever was planned.

    Returns:
        RunFolder: the student's run, finished; its only view is ``network``.

    Raises:
        RunFolderError: the teacher has not finished, the new folder exists, or there is nothing to resume.
        ConfigError: settings that cannot be.
        DataError: the images are not those that the teacher was trained on.
        Interrupted: stopped by Ctrl-C; the checkpoint is written.
    """
    run = RunFolder(settings.out)
    if settings.resume:
        run.require_resumable()
        begun: TrainSettings = settings_from(run.config, TrainSettings)
        given = _given(settings)
        if settings.share != DistillSettings.share:  # the default is not told from what was not given
            given["teacher_share"] = settings.share
        if begun.teacher is None or begun.teacher.resolve() != settings.run.resolve():
            given["teacher"] = settings.run
        require_kept(run.path, begun, given)
        data = begun.data if settings.data is None else settings.data
        return train(dataclasses.replace(begun, data=data, out=settings.out, resume=True, **ONE_DEVICE))
    run.require_free()
    source = RunFolder(settings.run)
    source.read_card()
    dataset, _ = recorded_data(source, settings.data)
    taught: TrainSettings = settings_from(source.config, TrainSettings)
    epochs, epochs_q = epochs_run(source)
    given = {"epochs": epochs, "epochs_q": epochs_q} | _given(settings)
    if "backbone" in given:  # the teacher's belong to another architecture
        given = {"taps": (), "imagenet_weights": None, "lr": None, "lr_q": None} | given
    if taught.learners and "bits" not in given:
        given["bits"] = taught.bits[:1]  # those of the meta learner, whose place the student takes
    return train(
        dataclasses.replace(
            taught,
            **given,
            data=dataset.root,
            out=settings.out,
            learners=0,
            prediction="auto",  # there is one view
            teacher=settings.run,
            teacher_share=settings.share,
            resume=False,
            **ONE_DEVICE,
            **NO_BUDGET,
        )
    )


def _given(settings: DistillSettings) -> dict[str, Any]:
    return {name: value for name in _CHANGES if (value := getattr(settings, name)) is not None}
