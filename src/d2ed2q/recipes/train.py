"""Train an ensemble in full precision, then quantize it step by step with retraining in between."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice

import torch
from torch import nn

from d2ed2q.data import (
    Case,
    Dataset,
    Sample,
    batches,
    finds_regions,
    open_dataset,
)
from d2ed2q.deploy.dihedral import symmetries
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.files import atomic_path, sha256_of, write_text
from d2ed2q.quantization import IncrementalQuantizer
from d2ed2q.recipes.config import require_kept, settings_from, write_settings
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.epochs_run import FIRST, epochs_run
from d2ed2q.recipes.memory_layout import in_channels_last
from d2ed2q.recipes.run_data import record_data, split_cases
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.statistics import estimate_statistics, norms_of
from d2ed2q.recipes.teacher import Teacher, record_teacher, require_unseen
from d2ed2q.recipes.train_settings import WHERE, TrainSettings
from d2ed2q.recipes.training_parts import Objective, card_of, channels_last_batches, fabric_of, training_images
from d2ed2q.recipes.validation import (
    Decided,
    choose_rules,
    decide,
    given_prediction,
    keeps_best,
    validation_figures,
)
from d2ed2q.training import (
    Batch,
    MetricsLog,
    Optimization,
    Pace,
    Phase,
    Trainer,
    is_first_process,
    on_first,
    prepare_processor,
    read_log,
)

__all__ = ["train", "train_phases"]

_BATCHES = 8  # that BatchNorm's statistics are found anew from


def train(settings: TrainSettings, watch: Callable[[dict[str, float]], None] | None = None) -> RunFolder:
    """Runs the whole training, or what is left of it with ``settings.resume``.

    Full-precision phase, then one phase for each quantization step; each starts where the one before ends: with its
    best validated weights, or its last ones where few images validate. Which view is the prediction, and all
    thresholds, are chosen on validation images at the end.

    Args:
        settings: of the training.
        watch: given the figures of every validation; what it raises ends the training, which may be resumed.

    Returns:
        RunFolder: the finished run.

    Raises:
        D2ED2QError: whatever is wrong with settings, data, folder or disk, in one sentence.
        Interrupted: stopped by Ctrl-C; the checkpoint is written.
    """
    prepare_processor()
    began, plan = time.monotonic(), None
    run = RunFolder(settings.out)
    if settings.resume:
        settings = _resumed(run, settings)
    else:
        if is_first_process():
            run.require_free()
            run.require_writable()
        if settings.budget is not None and settings.time_limit is None:
            from d2ed2q.recipes.plan import make_plan  # which measures what is done here, and so imports this module

            made = make_plan(settings, began)
            settings, plan = made.settings, made.to_toml()
    dataset = open_dataset(settings.data, settings.dataset)
    return train_phases(run, settings, dataset, split_cases(settings, dataset), began=began, plan=plan, watch=watch)


def train_phases(
    run: RunFolder,
    settings: TrainSettings,
    dataset: Dataset,
    splits: Mapping[str, Sequence[Case]],
    start: RunFolder | None = None,
    began: float | None = None,
    plan: str | None = None,
    watch: Callable[[dict[str, float]], None] | None = None,
) -> RunFolder:
    """Trains into a run folder, or goes on there with ``settings.resume``.

    Args:
        run: the folder, free or to be resumed.
        settings: all of them resolved.
        dataset: the images.
        splits: which cases are for what.
        start: a finished run of the same settings up to quantization: its full-precision weights stand for the first
            phase. Epochs are numbered as if that had been trained here, so that the same batches follow.
        began: reading of ``time.monotonic()`` from which the time limit counts; None is now.
        plan: what ``plan.toml`` is to say, if the settings were planned.
        watch: given the figures of every validation.

    Returns:
        RunFolder: the finished run.

    Raises:
        D2ED2QError: as :func:`train`.
    """
    fabric = fabric_of(settings)
    fabric.launch()
    torch.manual_seed(settings.seed)
    card = card_of(settings, dataset)
    ensemble = _build(settings, card) if start is None else start.load(full_precision=True)
    quantizer = _quantizer(settings, ensemble)
    training_set = training_images(settings, dataset, splits["train"])
    validation = [dataset.read(case) for case in splits["validation"]]
    if not any(sample.label is not None and sample.label.any() for sample in validation):
        raise DataError(
            f"none of the {len(validation)} validation images ({validation[0].id} is one) has any foreground to choose "
            f"a threshold on; use another seed or a larger validation_fraction"
        )
    ensemble = in_channels_last(ensemble, card.dims)
    prediction = given_prediction(settings, len(validation))

    def validate() -> dict[str, float]:
        figures = validation_figures(ensemble, card, validation, prediction)
        if watch is not None:
            watch(figures)
        return figures

    teacher = None
    if settings.teacher is not None:
        teacher = Teacher(RunFolder(settings.teacher), card, settings.teacher_share, fabric.device)
        if start is None:  # of a run that is quantized anew it was checked when that was trained
            require_unseen(teacher, (*splits["test"], *splits.get("fold", ())))
    objective: nn.Module = Objective(settings, ensemble, teacher)
    if settings.compile:
        if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
            raise ConfigError("compile needs a C++ compiler, and none is on the PATH; install g++, or use --no-compile")
        objective.compile()  # in place: the module stays a module
    images = settings.epoch_images
    steps_per_epoch = -(-(images or len(training_set)) // settings.batch_size)
    validates = {case.id for case in splits["validation"]}
    every = settings.threshold_images == "all" and card.n_outputs == 1
    also = [case for case in splits["train"] if every and case.id not in validates]
    closing = len(symmetries(card.tta, card.dims)) * (1 + len(also) / len(validation))

    def decided() -> Decided:
        return decide(ensemble, card, validation, map(dataset.read, also), prediction)

    def batches_of(epoch: int, first: int = 0) -> Generator[Batch, None, None]:
        part = (fabric.global_rank, fabric.world_size)
        return channels_last_batches(
            batches(training_set, settings.batch_size, epoch, settings.seed, images=images, part=part, first=first)
        )

    def rounded() -> None:
        """What BatchNorm sees has moved, and a short retraining would not catch up."""
        device, training = ensemble.input_scale.device, ensemble.training
        ensemble.eval()
        with contextlib.closing(batches_of(0)) as stream:
            some = (batch["image"].to(device) for batch in islice(stream, _BATCHES))
            estimate_statistics(norms_of(ensemble), ensemble, some)
        ensemble.train(training)

    limit = settings.time_limit
    trainer = Trainer(
        fabric,
        ensemble,
        objective=objective,
        batches=batches_of,
        steps_per_epoch=steps_per_epoch,
        validate=validate,
        phases=_phases(settings, run, card, ensemble, quantizer, decided, rounded),
        options=Optimization(settings.optimizer, settings.weight_decay, settings.schedule, clip=settings.clip),
        checkpoint=run.checkpoint,
        log=lambda step, open_epoch: MetricsLog(run.metrics, run.tensorboard, step, open_epoch),
        validate_every=settings.validate_every,
        keep_best=keeps_best(settings, len(validation)),
        checkpoint_seconds=settings.checkpoint_seconds,
        extras={"quantizer": quantizer} if quantizer is not None else {},
        on_optimizer=quantizer.attach if quantizer is not None else None,
        pace=None if limit is None else Pace(limit, closing, settings.validate_every, settings.fill_time, began=began),
    )

    def begun() -> bool:
        """Whether there is a checkpoint to go on from; a run killed before its first one starts again."""
        held.enter_context(run.locked())
        _begin(run, settings, plan)
        record_data(run, dataset, splits, start)
        record_teacher(run, teacher, start)
        return settings.resume and run.checkpoint.exists()

    with contextlib.ExitStack() as held:
        resume = on_first(fabric, begun)
        if start is not None and not resume:
            trainer.skip(*on_first(fabric, lambda: _take_over(run, start)))
        fabric.barrier()
        seconds = trainer.run(resume)
        on_first(fabric, lambda: _finish(run, settings, card, ensemble, decided(), validation, quantizer, seconds))
    return run


def _begin(run: RunFolder, settings: TrainSettings, plan: str | None) -> None:
    """Writes what a run begins with, or clears up where it goes on."""
    if settings.resume:
        run.remove_leftovers()
    else:
        write_settings(run.config, settings)  # first, because it is what makes a folder a run that can be resumed
        if plan is not None:
            write_text(run.plan, plan)
    begun = run.read_json(run.environment) if run.environment.exists() else None
    if begun is None:
        run.write_json(run.environment, environment())
    elif settings.resume:  # perhaps on another machine, or by other code
        run.write_json(run.environment, {**begun, "resumed": [*begun.get("resumed", ()), environment()]})


def _resumed(run: RunFolder, settings: TrainSettings) -> TrainSettings:
    run.require_resumable()
    saved: TrainSettings = settings_from(run.config, TrainSettings)
    # Everything that would change the numbers is the run's; only where things are, and how often they are saved, may
    # differ. A setting that was given and is another one is refused rather than ignored.
    fields = [field for field in dataclasses.fields(TrainSettings) if field.name not in WHERE]
    values = {field.name: getattr(settings, field.name) for field in fields}
    given = {field.name: values[field.name] for field in fields if values[field.name] != field.default}
    require_kept(run.path, saved, given)
    return dataclasses.replace(saved, **{name: getattr(settings, name) for name in WHERE})


def _build(settings: TrainSettings, card: ModelCard) -> DeepEnsemble:
    if settings.imagenet_weights is not None and not settings.imagenet_weights.is_file():
        raise ConfigError(f"there is no weights file at {settings.imagenet_weights} (--imagenet-weights)")
    return card.build(settings.imagenet_weights)


def _quantizer(settings: TrainSettings, ensemble: DeepEnsemble) -> IncrementalQuantizer | None:
    if not settings.quantize:
        return None
    meta, *base = settings.bits_per_learner
    bits = {"meta": meta} | {f"base.{index}": b for index, b in enumerate(base)}
    if len(ensemble.fusions):
        bits["fusions"] = meta
    return IncrementalQuantizer(ensemble, bits, settings.codebook, settings.fractions, settings.random, settings.seed)


def _phases(
    settings: TrainSettings,
    run: RunFolder,
    card: ModelCard,
    ensemble: DeepEnsemble,
    quantizer: IncrementalQuantizer | None,
    decided: Callable[[], Decided],
    rounded: Callable[[], None],
) -> list[Phase]:
    def keep_full_precision() -> None:
        decided()
        run.save_weights(run.full_precision, ensemble)

    phases = [Phase(FIRST, settings.epochs, settings.rate, end=keep_full_precision)]
    if quantizer is not None:

        def quantize() -> Mapping[str, float]:
            quantizer.advance()
            rounded()
            return {"frozen_fraction": quantizer.frozen_fraction}

        phases += [
            Phase(f"quantization_{step}", settings.epochs_q, settings.rate_q, begin=quantize)
            for step in range(1, quantizer.n_steps + 1)
        ]
    return phases


def _take_over(run: RunFolder, start: RunFolder) -> tuple[list[int], float]:
    """Copies the full-precision weights of a finished run and their log.

    Returns:
        tuple: the epochs of that phase, which a time limit may have shortened, as a list of one; and its seconds.
    """
    with atomic_path(run.full_precision) as temporary:
        shutil.copyfile(start.full_precision, temporary)
    rows = [row for row in read_log(start.metrics) if row.get("phase") == FIRST]
    write_text(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    seconds = max((row["seconds"] for row in rows if row["kind"] == "train"), default=0.0)
    return [epochs_run(start)[0]], seconds


def _finish(
    run: RunFolder,
    settings: TrainSettings,
    card: ModelCard,
    ensemble: DeepEnsemble,
    decided: Decided,
    validation: list[Sample],
    quantizer: IncrementalQuantizer | None,
    seconds: float,
) -> None:
    objects, cleaning = choose_rules(decided, validation, settings.clean)
    run.save_weights(run.model, ensemble)
    if quantizer is not None:
        run.save_codebooks(quantizer.codebooks)
    run.save_card(
        dataclasses.replace(
            card,
            objects=objects,
            cleaning=cleaning,
            region="field_of_view" if finds_regions(validation) else "whole",
            prediction=ensemble.prediction_name,
            thresholds={name: ensemble.threshold_of(name) for name in decided.dice},
            validation_dice=decided.dice,
            training_seconds=round(seconds, 1),
            sha256={path.name: sha256_of(path) for path in (run.model, run.full_precision)},
        )
    )
