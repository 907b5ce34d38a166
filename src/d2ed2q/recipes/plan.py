"""Sensible settings without being asked: from the images, the machine and a budget of time to a plan with reasons."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import torch

from d2ed2q.data import Case, Dataset, fingerprint, open_dataset
from d2ed2q.errors import ConfigError
from d2ed2q.files import require_place, write_text
from d2ed2q.recipes.budget import budget_seconds, duration
from d2ed2q.recipes.calibrate import Calibration, Costs, calibrate_apart
from d2ed2q.recipes.choices import Choice, choices, kind_of
from d2ed2q.recipes.machine import Machine, this_machine
from d2ed2q.recipes.plan_file import Plan
from d2ed2q.recipes.run_data import all_cases
from d2ed2q.recipes.schedule import Cases, Schedule, least_seconds, make_schedule, predicted_seconds
from d2ed2q.recipes.settings import PlanSettings
from d2ed2q.recipes.train_settings import TestTimeAugmentation, TrainSettings
from d2ed2q.recipes.validation import TELLING

__all__ = ["make_plan", "plan"]

_USED = 0.9  # share of the budget that is planned with; machines are noisy
_MEMORY = 0.7  # share of the free memory that may be taken
_TRIALS = 3  # candidates that are measured at most, because measuring takes time too
_NEVER_PLANNED = ("data", "out", "resume", "budget", "time_limit", "checkpoint_seconds")
_AUGMENTATIONS: tuple[TestTimeAugmentation, ...] = ("dihedral", "flips", "none")


def plan(settings: PlanSettings) -> Plan:
    """Makes a plan and writes it.

    Raises:
        D2ED2QError: whatever is wrong with settings, data or budget, in one sentence.
    """
    if settings.out.exists() and not settings.overwrite:
        raise ConfigError(f"{settings.out} exists; choose another with --out, or replace it with --overwrite")
    require_place(settings.out)
    given = TrainSettings(
        data=settings.data,
        out=settings.out,
        dataset=settings.dataset,
        budget=settings.budget,
        folds=settings.folds,
        fold=settings.fold,
        seed=settings.seed,
    )
    fixed: dict[str, Any] = {}
    if settings.backbone is not None:  # the default one too: here it was asked for
        fixed["backbone"] = settings.backbone
        given = dataclasses.replace(given, backbone=settings.backbone)
    made = make_plan(given, also=fixed)
    write_text(settings.out, made.to_toml())
    return made


def make_plan(settings: TrainSettings, began: float | None = None, also: Mapping[str, Any] | None = None) -> Plan:
    """Chooses what is not given in the settings, so that training takes about nine tenths of the budget.

    Args:
        settings: with a budget; a value other than the field's default is taken as given, and kept.
        began: reading of ``time.monotonic()`` when the training began, if making the plan is a part of it.
        also: values that are given although they are the default.

    Raises:
        ConfigError: the budget or the memory is too small.
        D2ED2QError: whatever is wrong with settings or data.
    """
    assert settings.budget is not None  # that is what a plan is made for
    budget = budget_seconds(settings.budget)
    given = {**_given(settings), **(also or {})}
    dataset = open_dataset(settings.data, settings.dataset)
    splits = all_cases(settings, dataset)
    makers = bool(dataset.validation) and settings.folds is None
    pool = tuple(splits["train"]) if makers else (*splits["train"], *splits["validation"])
    cases = Cases(
        len(pool),
        len({case.patient for case in pool}),
        len(splits["validation"]) if makers else 0,
        min(len(splits["validation"]), settings.validation_images or len(splits["validation"]))
        if {"validation_fraction", "validation_images"} & set(given)
        else None,
        also=False if len(dataset.classes) > 2 else True if "threshold_images" in given else None,
        all_train=settings.training_images == "all",
    )
    found = fingerprint(dataset, pool)
    machine = this_machine(settings.device)
    candidates = choices(found, machine.gpu is not None, given.get("backbone"))
    planner = _Planner(settings, given, dataset, pool, cases, machine, budget, began)
    choice, trial, costs, schedule = planner.search(candidates)
    values, reasons = _scheduled(schedule, cases, choice, trial, given, budget, dataset.name)
    final = dataclasses.replace(trial, **{name: value for name, value in values.items() if name not in given})
    reasons |= {name: "given" for name in given}
    schedule = dataclasses.replace(
        schedule, epochs=final.epochs, epochs_q=final.epochs_q, validate_every=final.validate_every
    )
    seconds = predicted_seconds(schedule, costs, cases, planner.phases, dataset.dims)
    schedule = dataclasses.replace(schedule, seconds=seconds)
    decided = schedule.validation + schedule.also
    memory = costs.memory + costs.item_bytes * schedule.training + costs.sample_bytes * decided
    return Plan(final, reasons, kind_of(found), found, machine, costs, schedule, budget, memory)


def _given(settings: TrainSettings) -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(TrainSettings) if field.name not in _NEVER_PLANNED]
    return {
        field.name: getattr(settings, field.name) for field in fields if getattr(settings, field.name) != field.default
    }


class _Planner:
    """Measures candidates and finds the most capable one that has enough steps in the budget."""

    def __init__(
        self,
        settings: TrainSettings,
        given: Mapping[str, Any],
        dataset: Dataset,
        pool: tuple[Case, ...],
        cases: Cases,
        machine: Machine,
        budget: int,
        began: float | None,
    ) -> None:
        self.settings = settings
        self.given = given
        self.dataset = dataset
        self.pool = pool
        self.cases = cases
        self.machine = machine
        self.budget = budget
        self.began = began
        self.phases = len(settings.fractions) if settings.quantize else 0

    def search(self, candidates: tuple[Choice, ...]) -> tuple[Choice, TrainSettings, Costs, Schedule]:
        """Gives the choice, its settings, what it costs and its schedule.

        Raises:
            ConfigError: the budget or the memory is too small for all of them.
        """
        index = min(1, len(candidates) - 1)  # the first one is for large budgets only
        measured: dict[int, tuple[TrainSettings, Costs, Schedule]] = {}
        too_large = -1  # the last candidate that did not fit into the memory; none before it will
        while len(measured) < _TRIALS:
            outcome = self._measured(candidates[index])
            if outcome is None:
                too_large = index
                if index + 1 == len(candidates):
                    raise ConfigError(
                        f"even the smallest network does not fit into {_MEMORY:.0%} of the free memory "
                        f"({(self.machine.training_memory or 0) / 1e9:.1f} GB) with the images; close other programs, "
                        f"hold out fewer images (--validation-images), or use another machine"
                    )
                index += 1
                if index in measured:
                    break
                continue
            measured[index] = outcome
            better = max(self._better(candidates, index, outcome[2]), too_large + 1)
            if better in measured:
                break
            index = better
        enough = [number for number, (_, _, schedule) in measured.items() if schedule.enough]
        if not enough:
            index = max(measured)
            trial, costs, _ = measured[index]
            least = least_seconds(costs, self.cases, self.phases, self.dataset.dims, trial.batch_size)
            needed = 10 * -(-(least + self._spent()) // (10 * _USED))
            raise ConfigError(
                f"a budget of {duration(self.budget)} is too small for these images on this machine, as busy as it is "
                f"now; it takes at least {duration(needed)}"
            )
        fitting = [number for number in enough if self._steps(measured[number][2]) >= candidates[number].steps]
        index = min(fitting, default=max(enough))
        return candidates[index], *measured[index]

    def _better(self, candidates: tuple[Choice, ...], index: int, schedule: Schedule) -> int:
        """The most capable candidate that should have enough steps, judged by what this one has."""
        steps = self._steps(schedule)
        for number, choice in enumerate(candidates):
            if steps * candidates[index].work / choice.work >= choice.steps:
                return number
        return len(candidates) - 1

    def _steps(self, schedule: Schedule) -> int:
        return schedule.epochs * schedule.steps

    def _spent(self) -> float:
        return 0.0 if self.began is None else time.monotonic() - self.began

    def _measured(self, choice: Choice) -> tuple[TrainSettings, Costs, Schedule] | None:
        """Settings, costs and schedule of a candidate, at a smaller batch if need be; None if it does not fit."""
        trial = self._trial(choice)
        free = self.machine.training_memory
        allowed = None if free is None else int(_MEMORY * free)
        while True:
            costs = calibrate_apart(Calibration(trial, self.dataset, self.pool, torch.get_num_threads(), allowed))
            if costs is not None and costs.fits and (allowed is None or costs.memory <= allowed):
                room = self._room(costs)
                if room is None or room >= (self.cases.held_out or 1):
                    break
            if "batch_size" in self.given or trial.batch_size == 1:
                return None
            trial = dataclasses.replace(trial, batch_size=trial.batch_size // 2)
        tta = trial.test_time_augmentation
        augmentations = (tta,) if "tta" in self.given else _AUGMENTATIONS[_AUGMENTATIONS.index(tta) :]
        seconds = _USED * self.budget - self._spent()
        dims = self.dataset.dims
        cases = dataclasses.replace(self.cases, most=room)
        schedule = make_schedule(costs, seconds, cases, trial.batch_size, self.phases, dims, augmentations)
        return trial, costs, schedule

    def _trial(self, choice: Choice) -> TrainSettings:
        values = {name: value for name, value in choice.values.items() if name not in self.given}
        if {"resize", "scale", "spacing"} & set(self.given):
            values = {name: value for name, value in values.items() if name not in ("resize", "scale", "spacing")}
        if "crop" in self.given:
            values.pop("resize", None)
        elif "crop" not in values and "resize" not in values and "resize" not in self.given:
            values["crop"] = (256,) * self.dataset.dims
        if "lr" in self.given:
            values.pop("lr_q", None)  # a share of the rate, whose default holds
        fill = not {"epochs", "epochs_q", "fill_time"} & set(self.given)
        return dataclasses.replace(
            self.settings, **values, time_limit=float(self.budget), fill_time=fill or self.settings.fill_time
        )

    def _room(self, costs: Costs) -> int | None:
        """For how many validation images there is memory beside training images and networks; None if not known."""
        if self.machine.memory is None:
            return None
        networks = 0 if self.machine.gpu is not None else costs.memory
        left = int(_MEMORY * self.machine.memory) - networks - costs.item_bytes * self.cases.pool
        return max(left, 0) // max(costs.sample_bytes, 1)


def _scheduled(
    schedule: Schedule,
    cases: Cases,
    choice: Choice,
    trial: TrainSettings,
    given: Mapping[str, Any],
    budget: int,
    layout: str,
) -> tuple[dict[str, Any], dict[str, str]]:
    """All values of the plan beside those of the choice, and all reasons."""
    reasons = dict(choice.reasons)
    values: dict[str, Any] = {
        "dataset": layout,
        "epochs": schedule.epochs,
        "epochs_q": schedule.epochs_q,
        "epoch_images": schedule.epoch_images,
        "validate_every": schedule.validate_every,
        "tta": schedule.tta,
        "threshold_images": "all" if schedule.also else "validation",
    }
    reasons["dataset"] = "the layout that was found"
    reasons["time_limit"] = f"the budget of {duration(budget)}; if the machine is slower, training is shortened to fit"
    reasons["fill_time"] = "if the machine is faster than it was when this was measured, training is lengthened"
    phases = len(trial.fractions) if trial.quantize else 0
    share = schedule.epochs / (schedule.epochs + phases * schedule.epochs_q)
    reasons["epochs"] = f"{schedule.epochs * schedule.steps} optimizer steps, {share:.0%} of all"
    when = "" if phases else ", should d2ed2q quantize follow"
    reasons["epochs_q"] = f"{schedule.epochs_q * schedule.steps} optimizer steps after each quantization step{when}"
    reasons["epoch_images"] = "a part of this large set, so that validations come often enough"
    reasons["validate_every"] = "often enough to see how it goes, seldom enough to cost little of the time"
    reasons["threshold_images"] = _why_thresholds(schedule, cases)
    reasons["tta"] = _why_tta(schedule, trial)
    if cases.validation:
        values["validation_images"] = schedule.validation if schedule.validation < cases.validation else None
        reasons["validation_images"] = f"of the makers' {cases.validation}, as many as the time allows"
    else:
        patients = max(1, round(schedule.validation * cases.patients / cases.pool))
        values["validation_fraction"] = round(patients / cases.patients, 4)
        enough = "enough" if schedule.validation >= TELLING else "too few"
        reasons["validation_fraction"] = f"{patients} of {cases.patients} patients, {enough} to choose an epoch by"
    reasons |= {
        "learners": "what the method was made for; more cost as much again each",
        "bits": "on images like those learnt from, four bits cost hardly any accuracy; half the size of eight",
        "codebook": "exact in int8 engines",
        "precision": "bf16 where the machine computes it natively",
    }
    for name in ("folds", "fold", "seed"):
        reasons[name] = "given"
    return values, reasons


def _why_tta(schedule: Schedule, trial: TrainSettings) -> str:
    if schedule.tta != trial.test_time_augmentation:
        return f"{trial.test_time_augmentation} would take too much of this budget"
    if schedule.tta == "none":
        return "training does not mirror either"
    turned = " and quarter turns, as in training," if schedule.tta == "dihedral" else ""
    return f"all mirror images{turned} are averaged"


def _why_thresholds(schedule: Schedule, cases: Cases) -> str:
    if cases.also is False:
        return "several classes need no threshold"
    if schedule.also:
        return f"a threshold of {schedule.validation} validation images alone may be far from the best"
    if schedule.validation < TELLING:
        return "a threshold of all images may be better, but to predict them takes too much of this budget"
    return f"{schedule.validation} validation images are enough to choose a threshold on"
