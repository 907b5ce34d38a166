"""From measured costs and a budget to epochs, validations and test-time augmentation: arithmetic, nothing is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from d2ed2q.deploy.dihedral import symmetries
from d2ed2q.recipes.calibrate import Costs
from d2ed2q.recipes.train_settings import TestTimeAugmentation
from d2ed2q.recipes.validation import TELLING

__all__ = ["Cases", "Schedule", "least_seconds", "make_schedule", "predicted_seconds"]

START = 12.0  # seconds that a training takes beside all that is measured: imports, checksums, logs, writing
PHASE = 1.0  # seconds that a phase takes beside its epochs: quantizing, checkpoints
RETRAINING = 1.12  # a step of retraining, in steps of full precision: frozen weights are held in place
FULL_PRECISION = 0.75  # share of the time for training that full precision gets
LATER = 12  # without quantization, epochs of training for each epoch of a later step of retraining
VALIDATION = 0.12  # share of an epoch's time that its validations may take on average
DECISIONS = 0.2  # share of all time that the ends of the phases may take
SMALLEST = 40  # optimizer steps in full precision that a training must have at least
SMALLEST_Q = 5  # and in each retraining
FINEST = 60  # an epoch of a large set is cut so that at least so many fit into the time
VALIDATIONS = 50  # validations of a run; more tell no more
FEW = 10  # validation images that test-time augmentation gives way to
THRESHOLDS = 0.1  # share of all time that this may take


@dataclass(frozen=True)
class Cases:
    """What there is to train on.

    Attributes:
        pool: training cases, those included that validation cases are cut from.
        patients: their patients.
        validation: the makers' validation cases; 0 where they are cut from the pool.
        held_out: validation cases where their number was given.
        most: validation cases that there is memory for; None where that is not known.
        also: whether thresholds are chosen on training cases too; None if that depends on how many validate.
        all_train: whether validation cases are trained on, too.
    """

    pool: int
    patients: int
    validation: int
    held_out: int | None = None
    most: int | None = None
    also: bool | None = False
    all_train: bool = False

    @property
    def wanted(self) -> int:
        """Validation images if there is time: all of the makers', else those of about a sixth of the patients."""
        if self.held_out is not None:
            return self.held_out
        wanted = self.validation
        if not wanted:
            held_out = min(max(round(0.15 * self.patients), 1 if self.patients < 6 else 2), 24)
            wanted = max(1, round(held_out * self.pool / self.patients))
        return wanted if self.most is None else max(1, min(wanted, self.most))


@dataclass(frozen=True)
class Schedule:
    """How long what goes on.

    Attributes:
        epochs: in full precision.
        epochs_q: after each quantization step; of a training without any, for a later ``d2ed2q quantize``.
        validate_every: epochs between validations.
        validation: validation images.
        training: images to train on.
        also: those of them that thresholds are chosen on, beside the validation images: all others or none.
        tta: test-time augmentation.
        epoch_images: images an epoch, if not all.
        steps: optimizer steps of an epoch.
        seconds: that everything will take.
    """

    epochs: int
    epochs_q: int
    validate_every: int
    validation: int
    training: int
    also: int
    tta: TestTimeAugmentation
    epoch_images: int | None
    steps: int
    seconds: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether this is a training at all."""
        return self.epochs * self.steps >= SMALLEST and self.epochs_q * self.steps >= SMALLEST_Q


def _thresholds(costs: Costs, tta: str, dims: int) -> float:
    """Seconds for one image that thresholds are chosen on, at the ends of the phases."""
    return 2 * (costs.close + (len(symmetries(tta, dims)) - 1) * costs.predict)


def _decisions(costs: Costs, tta: str, dims: int, quantize: bool) -> float:
    """Seconds for one validation image at the ends of the phases."""
    return _thresholds(costs, tta, dims) + costs.rules + (5 if quantize else 1) * costs.validate


def predicted_seconds(plan: Schedule, costs: Costs, cases: Cases, phases: int, dims: int) -> float:
    """Seconds that a training takes, from the start of the program to its end."""
    validations = math.ceil(plan.epochs / plan.validate_every) + phases * math.ceil(plan.epochs_q / plan.validate_every)
    last = 1 + phases  # counted among the decisions
    epochs = plan.epochs + phases * plan.epochs_q * RETRAINING
    return (
        START
        + PHASE * (1 + phases)
        + costs.load * (cases.pool + cases.validation)
        + epochs * (costs.epoch + plan.steps * costs.step)
        + max(validations - last, 0) * plan.validation * costs.validate
        + plan.validation * _decisions(costs, plan.tta, dims, phases > 0)
        + plan.also * _thresholds(costs, plan.tta, dims)
    )


def make_schedule(
    costs: Costs,
    seconds: float,
    cases: Cases,
    batch_size: int,
    phases: int,
    dims: int,
    augmentations: Sequence[TestTimeAugmentation] = ("dihedral", "flips", "none"),
) -> Schedule:
    """Divides the time: about three quarters of what is left for training go to full precision, the rest to retraining.

    Args:
        costs: what was measured.
        seconds: that the whole training may take.
        cases: what there is to train on.
        batch_size: images a step.
        phases: quantization steps, 0 without quantization.
        dims: 2 for pictures, 3 for volumes.
        augmentations: test-time augmentations to choose from, the best first.

    Returns:
        Schedule: one that fits, if ``enough``; else the shortest there is.
    """
    validation, tta = 1, augmentations[-1]
    for tta in augmentations:
        fitting = int(DECISIONS * seconds / max(_decisions(costs, tta, dims, phases > 0), 1e-9))
        validation = min(cases.wanted, max(fitting, 1))
        too_many = cases.also and cases.pool * _thresholds(costs, tta, dims) > DECISIONS * seconds
        if fitting >= min(cases.wanted, FEW) and not too_many:
            break
    if cases.held_out is not None:
        validation = cases.held_out
    elif not cases.validation:  # whole patients are held out, and one has to be left
        share = cases.pool / cases.patients
        validation = round(max(1, min(round(validation / share), cases.patients - 1)) * share)
    rest = cases.pool if cases.validation else cases.pool - validation
    training = rest + validation if cases.all_train else rest
    fixed = START + PHASE * (1 + phases) + costs.load * (cases.pool + cases.validation)
    more = rest * _thresholds(costs, tta, dims)
    also = cases.also or (cases.also is None and validation < TELLING and more <= THRESHOLDS * seconds)
    left = seconds - fixed - validation * _decisions(costs, tta, dims, phases > 0) - (more if also else 0.0)
    left = max(left, 0.0)
    steps, epoch_images = -(-training // batch_size), None
    if FINEST * (costs.epoch + steps * costs.step) > left:
        fewer = max(SMALLEST_Q, int((left / FINEST - costs.epoch) / costs.step))
        if fewer < steps:
            steps, epoch_images = fewer, fewer * batch_size
    epoch = costs.epoch + steps * costs.step
    every = math.ceil(validation * costs.validate / (VALIDATION * epoch))
    every = max(every, math.ceil(left / epoch / VALIDATIONS), 1)
    total = left / (epoch + validation * costs.validate / every)

    def divided(total: float) -> Schedule:
        epochs = max(1, int(total * (FULL_PRECISION if phases else 1)))
        epochs_q = max(1, int((total - epochs) / phases / RETRAINING)) if phases else max(1, epochs // LATER)
        made = Schedule(epochs, epochs_q, every, validation, training, rest * also, tta, epoch_images, steps)
        return dataclasses.replace(made, seconds=predicted_seconds(made, costs, cases, phases, dims))

    found = divided(total)
    while found.seconds > seconds and total > 1 + phases:
        total *= 0.99
        found = divided(total)
    return found


def least_seconds(costs: Costs, cases: Cases, phases: int, dims: int, batch_size: int) -> float:
    """Seconds of the shortest training there is, with one validation image and no test-time augmentation."""
    steps = min(-(-max(cases.pool - 1, 1) // batch_size), SMALLEST_Q)
    made = Schedule(math.ceil(SMALLEST / steps), math.ceil(SMALLEST_Q / steps), 10**6, 1, 1, 0, "none", None, steps)
    return predicted_seconds(made, costs, cases, phases, dims)
