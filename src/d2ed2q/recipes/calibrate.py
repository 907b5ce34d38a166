"""Measures what training costs here: real steps and predictions, in a process of its own.

The process is its own so that one that takes too much memory is killed alone, and so that its peak is its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from d2ed2q import errors
from d2ed2q.data import Case, Dataset, Sample, TrainingSet, batches, evenly_spread
from d2ed2q.ensemble import view_names
from d2ed2q.errors import D2ED2QError, DataError, TrainingError
from d2ed2q.recipes.inference import predict_sample
from d2ed2q.recipes.machine import peak_memory
from d2ed2q.recipes.memory_layout import in_channels_last
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.training_parts import Objective, card_of, channels_last_batches, fabric_of, training_images
from d2ed2q.recipes.validation import Decided, choose_rules, decide, validation_figures
from d2ed2q.training import Optimization, make_optimizer, optimizer_step, prepare_processor

__all__ = ["Calibration", "Costs", "calibrate", "calibrate_apart"]

_WARM_UP = 2
_LEAST, _MOST, _SECONDS = 3, 30, 3.0  # timed steps, and how long they may take
_BLUR, _NOISE = 3.0, 6.0  # pixels and strength; cutting then takes twice as long as on GlaS after training
_CASES = (8, 40)  # so many cases are read; more if a class is in none of them


@dataclass(frozen=True)
class Calibration:
    """What is to be measured.

    Attributes:
        settings: of the training.
        dataset: its dataset.
        cases: its training cases.
        threads: that PyTorch computes with.
        memory: bytes that the process may take; None does not ask.
    """

    settings: TrainSettings
    dataset: Dataset
    cases: tuple[Case, ...]
    threads: int
    memory: int | None


@dataclass(frozen=True)
class Costs:
    """What was measured; times in seconds, memory in bytes.

    Attributes:
        fits: whether the chosen batch fits into the memory; if not, no times were taken.
        memory: largest memory of the process in training at the chosen batch, or what it would be.
        memory_one: the same at batch 1.
        step: an optimizer step with its batch.
        epoch: what an epoch takes beside its steps: the first batch, which nothing hides.
        load: reading and keeping one case.
        predict: probabilities of one image, without test-time augmentation.
        validate: a validation of one image.
        close: choosing the threshold on one image, without test-time augmentation.
        rules: choosing what is done to a mask after the threshold, on one image, of which it is known.
        item_bytes: one training case in memory.
        sample_bytes: one validation case in memory, and its predictions.
        parameters: of the whole ensemble.
        precision: arithmetic.
    """

    fits: bool
    memory: int
    memory_one: int
    step: float = 0.0
    epoch: float = 0.0
    load: float = 0.0
    predict: float = 0.0
    validate: float = 0.0
    close: float = 0.0
    rules: float = 0.0
    item_bytes: int = 0
    sample_bytes: int = 0
    parameters: int = 0
    precision: str = ""


def calibrate_apart(job: Calibration) -> Costs | None:
    """Measures in a process of its own.

    Returns:
        Costs: see there; None if the process was killed, most likely because the memory ran out.

    Raises:
        D2ED2QError: whatever is wrong with settings or data.
        TrainingError: the process ended in another way.
    """
    done = subprocess.run(
        [sys.executable, "-m", "d2ed2q.recipes.calibrate"],
        input=pickle.dumps(job),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.returncode == 0 and lines:
        answer = json.loads(lines[-1])
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return Costs(**answer)
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode < 0 or any(errors.out_of_memory(line) for line in said[-1:]):
        return None
    raise TrainingError(f"a few steps of training were tried and failed: {said[-1] if said else 'without a word'}")


def calibrate(job: Calibration) -> Costs:
    """Measures in this process.

    Raises:
        D2ED2QError: whatever is wrong with settings or data.
    """
    prepare_processor()
    torch.set_num_threads(job.threads)
    settings, dataset = job.settings, job.dataset
    torch.manual_seed(settings.seed)
    card = dataclasses.replace(card_of(settings, dataset), tta="none")
    ensemble = card.build(settings.imagenet_weights)
    fabric = fabric_of(settings)
    training_set, load = _training_set(job)
    ensemble = in_channels_last(ensemble, card.dims)
    runnable = fabric.setup_module(Objective(settings, ensemble))
    options = Optimization(settings.optimizer, settings.weight_decay, settings.schedule, clip=settings.clip)
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    optimizer: Any = fabric.setup_optimizers(make_optimizer(ensemble.parameters(), settings.rate, options, scaled))

    def steps(batch_size: int, most: int) -> tuple[float, list[float]]:
        """Seconds to the first batch, and of each step after the first ones."""
        taken: list[float] = []
        runnable.train()
        begun = moment = time.perf_counter()
        first = 0.0
        # One long epoch: at the start of each the first batch has to be waited for.
        stream = batches(training_set, batch_size, 0, settings.seed, images=batch_size * (most + _WARM_UP))
        for number, batch in enumerate(channels_last_batches(stream)):
            first = first or time.perf_counter() - begun
            optimizer_step(fabric, runnable, optimizer, batch, settings.clip)
            now = time.perf_counter()
            if number >= _WARM_UP:
                taken.append(now - moment)
            moment = now
            if len(taken) >= _LEAST and sum(taken) > _SECONDS:
                break
        return first, taken

    before = _peak_memory(fabric.device)
    steps(1, 0)
    one = _peak_memory(fabric.device)
    expected = before + (one - before) * settings.batch_size
    if job.memory is not None and expected > job.memory:
        return Costs(False, expected, one)
    first, taken = steps(settings.batch_size, _MOST)
    peak = _peak_memory(fabric.device)
    sample = _typical(job)
    predict_sample(ensemble, card, sample)  # the first prediction of a size prepares for all later ones
    predict = _timed(lambda: predict_sample(ensemble, card, sample))
    validate = _timed(lambda: validation_figures(ensemble, card, [sample]))
    views = len(view_names(settings.learners))
    begun = time.perf_counter()
    decided = decide(ensemble, card, [sample])
    close = time.perf_counter() - begun
    # Cutting into objects takes as long as there are shapes: noise of an untrained network has other ones than masks.
    found = (decided, _as_if_trained(decided, sample))
    rules = max(_timed(lambda one=one: choose_rules(one, [sample], settings.clean)) for one in found)
    pixels = sample.image[0].numel()
    return Costs(
        fits=True,
        memory=peak,
        memory_one=one,
        step=statistics.median(taken),
        epoch=first,
        load=load,
        predict=predict,
        validate=validate,
        close=close,
        rules=rules,
        item_bytes=training_set.nbytes // len(training_set),
        # Image, label and region; in the end the probabilities of every view too, one of them ranked. Of several
        # classes only counts are kept.
        sample_bytes=pixels * (4 * card.in_channels + 9 + (4 * views + 28 if card.n_outputs == 1 else 0)),
        parameters=sum(parameter.numel() for parameter in ensemble.parameters()),
        precision=str(fabric.strategy.precision.precision),
    )


def _training_set(job: Calibration) -> tuple[TrainingSet, float]:
    """A part of the training cases in which every class occurs, and the seconds that one case takes to read."""
    settings = job.settings
    for count in (*_CASES, len(job.cases)):
        part = evenly_spread(job.cases, count)
        begun = time.perf_counter()
        try:
            made = training_images(settings, job.dataset, part)
        except DataError:
            if len(part) == len(job.cases):
                raise
            continue
        return made, (time.perf_counter() - begun) / len(part)
    raise AssertionError("the last part is the whole")


def _typical(job: Calibration) -> Sample:
    """Of a few cases with foreground the one of median size."""
    samples = [job.dataset.read(case) for case in evenly_spread(job.cases, _CASES[0])]
    shown = [sample for sample in samples if sample.label is not None and bool(sample.label.any())] or samples
    return sorted(shown, key=lambda sample: sample.image.numel())[len(shown) // 2]


def _as_if_trained(decided: Decided, sample: Sample) -> Decided:
    """The same, with probabilities as a poor network might give: the label, blurred and far from sure."""
    if not decided.probabilities:
        return decided
    assert sample.label is not None  # training cases have labels
    noise = np.random.default_rng(0).normal(size=tuple(sample.label.shape))
    doubted = ndimage.gaussian_filter((sample.label.numpy() > 0) + _NOISE * noise, _BLUR)
    return dataclasses.replace(decided, threshold=0.5, probabilities=[np.clip(doubted, 0, 1).astype(np.float32)])


def _timed(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _peak_memory(device: torch.device) -> int:
    """Largest memory so far, in bytes: of the accelerator, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return peak_memory()


def _main() -> None:
    job: Calibration = pickle.loads(sys.stdin.buffer.read())
    try:
        answer: dict[str, Any] = dataclasses.asdict(calibrate(job))
    except D2ED2QError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main()
