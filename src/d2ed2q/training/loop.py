"""The training loop: phases of epochs over any module, resumable to the bit at any step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from d2ed2q.errors import CheckpointError, Interrupted, StorageError, TrainingError, first_line
from d2ed2q.training.log import MetricsLog, NoLog, TrainingProgress
from d2ed2q.training.optimization import (
    LearningRate,
    Optimization,
    explained,
    is_scaled,
    load_optimizer,
    make_optimizer,
    optimizer_step,
)
from d2ed2q.training.pace import Pace
from d2ed2q.training.phase import Phase
from d2ed2q.training.position import Position
from d2ed2q.training.processes import on_any, on_first, share_buffers
from d2ed2q.training.signals import StopSignals
from d2ed2q.training.state import Stateful, clone_state, load_state, save_state

__all__ = ["Batch", "Trainer"]

Batch = Mapping[str, Tensor]


class Trainer:
    """Trains a module through a list of phases.

    A phase ends with the weights of its best validated epoch, or with its last ones. A checkpoint is one file, written
    atomically; it holds weights, optimizer, schedule, best weights and position, so that a resumed run goes through
    the same numbers as one that was never stopped. Ctrl-C (or SIGTERM) saves first.

    Args:
        fabric: devices and precision.
        module: what is trained and saved.
        objective: a module around it; of a batch: named scalars; ``loss`` is differentiated, all are logged. It is
            what runs under the chosen precision.
        batches: of the run's epoch number (over all phases) and a position in it: the epoch's batches from there on,
            always the same for one number.
        steps_per_epoch: how many batches that is.
        validate: figures on validation data; ``score`` decides (higher is better).
        phases: in order; what ends them is called in the first process only.
        options: optimizer, schedule, clipping.
        checkpoint: path of the checkpoint.
        log: where figures go, given the step that the run stands at, and whether that is inside an epoch.
        validate_every: epochs between validations; a phase's last epoch is always validated.
        keep_best: put the weights of each phase's best validated epoch back at its end; else its last ones stay.
        checkpoint_seconds: least time between two checkpoints; the end of training is always saved.
        extras: further state to save with the run, by name.
        on_optimizer: called with each phase's optimizer before its first step.
        pace: changes the phases' epochs when the run is off its time; None lets it take whatever it takes.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: nn.Module,
        *,
        objective: nn.Module,
        batches: Callable[[int, int], Iterator[Batch]],
        steps_per_epoch: int,
        validate: Callable[[], dict[str, float]],
        phases: Sequence[Phase],
        options: Optimization,
        checkpoint: Path,
        log: Callable[[int, bool], MetricsLog],
        validate_every: int = 1,
        keep_best: bool = True,
        checkpoint_seconds: float = 120.0,
        extras: Mapping[str, Stateful] | None = None,
        on_optimizer: Callable[[torch.optim.Optimizer], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.fabric = fabric
        self.module = module
        self.objective = objective
        self.batches = batches
        self.steps_per_epoch = steps_per_epoch
        self.validate = validate
        self.phases = list(phases)
        self.epochs = [phase.epochs for phase in phases]  # of each phase, as the pace has it
        self.options = options
        self.checkpoint = checkpoint
        self.make_log = log
        self.validate_every = max(validate_every, 1)
        self.keep_best = keep_best
        self.checkpoint_seconds = checkpoint_seconds
        self.pace, self.clock = pace, time.monotonic if pace is None else pace.clock
        self.extras = {**(extras or {}), **({"pace": pace} if pace is not None else {})}
        self.on_optimizer = on_optimizer
        self.at = Position()
        self.best: dict[str, Tensor] = {}
        self._stop = False
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._unwritable: StorageError | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(self.epochs) * self.steps_per_epoch

    def run(self, resume: bool = False) -> float:
        """Trains from the beginning, or from the checkpoint.

        Returns:
            float: seconds of training, all sessions together.

        Raises:
            Interrupted: stopped by a signal; the checkpoint is written.
            TrainingError: the loss or its gradient is not finite, there is not enough memory for a step, or a batch has
                too few pixels.
            StorageError: a file could not be written; the last complete checkpoint is kept.
            CheckpointError: the checkpoint is missing, damaged, or of another run.
        """
        saved = load_state(self.checkpoint) if resume else None
        if saved is not None:
            self._load(saved)
            self._saved_step = self.at.step
        runnable = self.fabric.setup_module(self.objective)
        log = self.make_log(self.at.step, self.at.batch > 0) if self.fabric.is_global_zero else NoLog()
        log.on_failure = self._cannot_write
        try:
            shown = self.fabric.is_global_zero
            with self._signals(), TrainingProgress(self.total_steps, self.at.step, shown=shown) as progress:
                while self.at.phase < len(self.phases):
                    self._run_phase(runnable, saved, log, progress)
                    saved = None
        except StorageError as error:
            kept = "no checkpoint was written yet; --resume begins anew"
            if self._saved_step is not None:
                kept = f"the checkpoint of step {self._saved_step} is kept; go on with --resume"
            raise StorageError(f"{error} ({kept})") from error
        finally:
            log.close()
        return self.at.elapsed

    def skip(self, epochs: Sequence[int], seconds: float) -> None:
        """Stands where phases of so many epochs, which took so long, end with the module as it is; saves that."""
        self.epochs[: len(epochs)] = epochs
        self.at.phase, self.at.elapsed = len(epochs), seconds
        self.at.step = self._global_epoch() * self.steps_per_epoch
        self._save(None, None)

    def _run_phase(
        self, runnable: nn.Module, saved: dict[str, Any] | None, log: MetricsLog, progress: TrainingProgress
    ) -> None:
        phase = self.phases[self.at.phase]
        fresh = self.at.epoch == 0 and self.at.batch == 0
        if fresh:
            figures = phase.begin()
            log.write("phase", self.at.step, phase=phase.name, epoch=self._global_epoch(), **figures)
        inner = make_optimizer(self.module.parameters(), phase.rate, self.options, is_scaled(self.fabric))
        if self.on_optimizer is not None:
            self.on_optimizer(inner)
        optimizer: Any = self.fabric.setup_optimizers(inner)
        rate = LearningRate(inner, phase.rate, self.epochs[self.at.phase] * self.steps_per_epoch, self.options)
        if saved is not None and not fresh:
            with self._reading():
                load_optimizer(inner, saved["optimizer"])
                rate.load_state_dict(saved["rate"])
        while self.at.epoch < self.epochs[self.at.phase]:
            if self.pace is not None:
                self.pace.begin_epoch()
            self._run_epoch(runnable, inner, optimizer, rate, phase, log, progress)
            if self.pace is not None:
                self.pace.end_epoch()
            self._close_epoch(rate, phase, log)
            if self.pace is not None and self._keep_pace(self.pace, rate, phase, log):
                self._save(inner, rate)  # a resumed run must not have to decide again
            self._stop_if_asked(inner, rate)
            if self._save_is_due():
                self._save(inner, rate)
        if self.best:
            self.module.load_state_dict(self.best)
        began = self.clock()
        on_first(self.fabric, phase.end)
        seconds = self.clock() - began
        self.at.elapsed += seconds
        if self.pace is not None and phase.decides:
            self.pace.closing_took(seconds)
        share_buffers(self.fabric, self.module)
        self.best = {}
        self.at.phase, self.at.epoch = self.at.phase + 1, 0
        self.at.best_score = -math.inf
        if self.at.phase == len(self.phases) or self._save_is_due():
            self._save(None, None)
        self._stop_if_asked()

    def _run_epoch(
        self,
        runnable: nn.Module,
        inner: torch.optim.Optimizer,
        optimizer: Any,
        rate: LearningRate,
        phase: Phase,
        log: MetricsLog,
        progress: TrainingProgress,
    ) -> None:
        runnable.train()
        began = time.monotonic()
        following = self.batches(self._global_epoch(), self.at.batch)
        for batch in islice(following, self.steps_per_epoch - self.at.batch):
            current = rate.before_step(self.at.epoch * self.steps_per_epoch + self.at.batch)
            try:
                values = optimizer_step(self.fabric, runnable, optimizer, batch, self.options.clip)
            except (TrainingError, RuntimeError, ValueError) as error:
                told = explained(error, phase.name, self.at.epoch + 1, current)
                if told is None:
                    raise
                raise told from error
            for name, value in values.items():
                self.at.sums[name] = self.at.sums.get(name, 0.0) + value
            self.at.batch += 1
            self.at.step += 1
            self.at.elapsed += time.monotonic() - began
            began = time.monotonic()
            progress.advance(f"{phase.name} epoch {self.at.epoch + 1} loss {values['loss']:.3f}", self.total_steps)
            last = self.at.batch == self.steps_per_epoch
            self._stop_if_asked(inner, rate)
            if not last and self._save_is_due():
                self._save(inner, rate)
        if self.at.batch != self.steps_per_epoch:
            raise ValueError(f"epoch {self._global_epoch()} had {self.at.batch} batches, not {self.steps_per_epoch}")

    def _close_epoch(self, rate: LearningRate, phase: Phase, log: MetricsLog) -> None:
        began = self.clock()
        epoch = self._global_epoch() + 1
        means = {name: value / self.steps_per_epoch for name, value in self.at.sums.items()}
        current = float(rate.optimizer.param_groups[0]["lr"])
        log.write(
            "train", self.at.step, phase=phase.name, epoch=epoch, **means, lr=current, seconds=round(self.at.elapsed, 3)
        )
        self.at.epoch, self.at.batch, self.at.sums = self.at.epoch + 1, 0, {}
        if self.at.epoch % self.validate_every == 0 or self.at.epoch == self.epochs[self.at.phase]:
            self.objective.eval()
            share_buffers(self.fabric, self.module)
            figures: dict[str, float] = on_first(self.fabric, self.validate)
            if self.pace is not None:
                self.pace.validation_took(self.clock() - began)
            rate.after_validation(figures["score"])
            log.write("validation", self.at.step, phase=phase.name, epoch=epoch, **figures)
            if self.keep_best and figures["score"] > self.at.best_score:
                self.at.best_score = figures["score"]
                self.best = clone_state(self.module)
        self.at.elapsed += self.clock() - began

    def _keep_pace(self, pace: Pace, rate: LearningRate, phase: Phase, log: MetricsLog) -> bool:
        """Changes the epochs of this phase and the later ones if the run is off its time; whether it did."""
        now = self.at.phase
        left = [self.epochs[now] - self.at.epoch, *self.epochs[now + 1 :]]
        closings = 1 + sum(phase.decides for phase in self.phases[now:])
        fitting = on_first(self.fabric, lambda: pace.fitting(left, closings))
        if fitting is None:
            return False
        if fitting[0] != left[0]:
            rate.spread(self.at.epoch * self.steps_per_epoch, fitting[0] * self.steps_per_epoch)
        self.epochs[now:] = [self.at.epoch + fitting[0], *fitting[1:]]
        log.write("pace", self.at.step, phase=phase.name, epoch=self._global_epoch(), **pace.row(self.epochs, left))
        return True

    def _stop_if_asked(self, inner: torch.optim.Optimizer | None = None, rate: LearningRate | None = None) -> None:
        if on_any(self.fabric, self._stop or self._unwritable is not None):
            self._save(inner, rate)
            if self._unwritable is not None:
                raise self._unwritable
            raise Interrupted(f"stopped after step {self.at.step} of {self.total_steps}; everything is saved")

    def _global_epoch(self) -> int:
        return sum(self.epochs[: self.at.phase]) + self.at.epoch

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.checkpoint_seconds

    def _save(self, inner: torch.optim.Optimizer | None, rate: LearningRate | None) -> None:
        if not self.fabric.is_global_zero or self._unwritable is not None:
            return
        state = {
            "position": vars(self.at),
            "phases": [[phase.name, phase.epochs] for phase in self.phases],
            "epochs": self.epochs,
            "module": self.module.state_dict(),
            "best": self.best,
            "optimizer": inner.state_dict() if inner is not None else None,
            "rate": rate.state_dict() if rate is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "extras": {name: extra.state_dict() for name, extra in self.extras.items()},
        }
        try:
            save_state(self.checkpoint, state)
        except StorageError as error:
            self._cannot_write(error)
        else:
            self._saved_at, self._saved_step = time.monotonic(), self.at.step

    def _cannot_write(self, error: StorageError) -> None:
        """Ends a single process; several end together when they next ask each other, lest one waits for another."""
        if self.fabric.world_size == 1:
            raise error
        self._unwritable = self._unwritable or error

    def _load(self, saved: dict[str, Any]) -> None:
        with self._reading():
            if saved["phases"] != [[phase.name, phase.epochs] for phase in self.phases]:
                raise CheckpointError(
                    f"{self.checkpoint} was made with other epochs or steps ({saved['phases']}); resume with the same "
                    f"settings, or start a new run in another folder"
                )
            self.epochs = [int(epochs) for epochs in saved.get("epochs", self.epochs)]
            self.module.load_state_dict(saved["module"])
            self.at = Position(**saved["position"])
            if not 0 <= self.at.phase <= len(self.phases):
                raise ValueError(f"there is no phase {self.at.phase}")
            self.best = saved["best"]
            self.fabric.strategy.precision.load_state_dict(saved["precision"])
            for name, extra in self.extras.items():
                extra.load_state_dict(saved["extras"][name])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoint} is damaged, or of another architecture or version: {first_line(error)}"
            ) from error

    def _signals(self) -> StopSignals:
        def stop() -> None:
            self._stop = True

        return StopSignals(stop)
