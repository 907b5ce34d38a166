"""Optimizer, learning-rate schedule and precision of one training phase."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.amp import GradScaler

from d2ed2q.errors import ConfigError, TrainingError, out_of_memory

__all__ = [
    "LearningRate",
    "Optimization",
    "explained",
    "fabric_precision",
    "is_first_process",
    "is_scaled",
    "load_optimizer",
    "make_fabric",
    "make_optimizer",
    "optimizer_step",
]

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass(frozen=True)
class Optimization:
    """How weights are optimized, in every phase.

    Attributes:
        optimizer: ``adam`` or ``adamw``, both fused.
        weight_decay: for ``adamw`` decoupled, for ``adam`` added to the gradient.
        schedule: ``cosine`` (linear warm-up, then down to zero at the phase's end), ``plateau`` (halved whenever the
            validation score has not risen for ``patience`` validations) or ``constant``.
        warmup: share of the phase's steps with linear warm-up, 0…1, cosine only.
        patience: validations without a better score before ``plateau`` halves.
        clip: largest norm of the whole gradient; 0 does not clip.
    """

    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    patience: int = 5
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw"):
            raise ConfigError(f"unknown optimizer {self.optimizer!r}: choose adam or adamw")
        if self.schedule not in ("cosine", "plateau", "constant"):
            raise ConfigError(f"unknown schedule {self.schedule!r}: choose cosine, plateau or constant")


def make_fabric(
    device: str, precision: str, devices: int = 1, nodes: int = 1, unused_parameters: bool = False
) -> Fabric:
    """Makes the Lightning Fabric that trains on one device, or on several that share every batch.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``; see :func:`fabric_precision`.
        devices: of each machine; each has a process of its own, and gradients are averaged (distributed data parallel).
        nodes: machines.
        unused_parameters: whether a network may have weights that its loss does not depend on.

    Raises:
        ConfigError: an unknown precision, or more devices than there are.
    """
    # Fabric tells its precision on the log; the run folder's settings do already.
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    name = fabric_precision(precision, torch.device(device))
    shared = devices * nodes > 1
    if device == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"devices is {devices}, but PyTorch sees {torch.cuda.device_count()} here")
    options: dict[str, Any] = {"accelerator": device, "devices": devices, "num_nodes": nodes}
    if shared:
        # The others wait while the first one validates and chooses thresholds, which may take longer than the usual
        # half an hour.
        options["strategy"] = DDPStrategy(find_unused_parameters=unused_parameters, timeout=timedelta(days=1))
    if name == "16-mixed" and device == "cpu":
        # Asked for fp16 on a processor, Fabric itself takes bf16 instead; PyTorch has both.
        return Fabric(**options, plugins=[MixedPrecision("16-mixed", "cpu", GradScaler("cpu"))])
    return Fabric(**options, precision=name)


def is_scaled(fabric: Fabric) -> bool:
    """Whether gradients are scaled, as those of fp16 are."""
    return getattr(fabric.strategy.precision, "scaler", None) is not None


def is_first_process() -> bool:
    """Whether this is the only process of a training, or the one of several that writes; known before they meet."""
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


def fabric_precision(name: str, device: torch.device) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """Translates ``auto``, ``fp32``, ``bf16`` or ``fp16`` for Lightning Fabric.

    ``auto`` is bf16 where the device computes it natively (CUDA from Ampere on, x86 with AVX512-BF16 or AMX), else
    fp32.

    Raises:
        ConfigError: any other name.
    """
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # PyTorch emulates bf16 on older processors, which is slower than fp32; these two say what is native.
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bf16" if native else "fp32"
    if name not in _PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}: choose auto, fp32, bf16 or fp16")
    return _PRECISIONS[name]


def make_optimizer(
    parameters: Iterable[nn.Parameter], rate: float, options: Optimization, scaled: bool = False
) -> torch.optim.Optimizer:
    """Makes the optimizer of one phase.

    It is fused, unless gradients are both scaled (fp16) and clipped: a fused optimizer unscales them itself, which is
    too late for clipping.
    """
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    fused = not (scaled and options.clip > 0)
    return kind(list(parameters), lr=rate, weight_decay=options.weight_decay, fused=fused)


def optimizer_step(
    fabric: Fabric, module: nn.Module, optimizer: Any, batch: Mapping[str, Tensor], clip: float
) -> dict[str, float]:
    """Takes one step down the gradient of ``module``'s loss.

    Args:
        fabric: that set up module and optimizer.
        module: gives the terms of the loss for a batch; ``loss`` is the one that is minimized.
        optimizer: of the module's parameters.
        batch: tensors on any device.
        clip: largest norm of the whole gradient; 0 does not clip.

    Returns:
        dict[str, float]: the value of every term, the mean of all processes that share the batch.

    Raises:
        TrainingError: the loss, or its gradient, is not finite; no step was taken.
    """
    terms: dict[str, Tensor] = module(fabric.to_device(dict(batch)))
    detached = torch.stack([term.detach().float() for term in terms.values()])
    if fabric.world_size > 1:  # all of them go on, or none does
        detached = fabric.all_reduce(detached, reduce_op="mean")  # type: ignore[assignment]  # a tensor for a tensor
    values = dict(zip(terms, detached.tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise TrainingError(f"the loss is {values['loss']}")
    fabric.backward(terms["loss"])
    scaled = is_scaled(fabric)
    norm: Any = None
    if clip > 0:
        norm = fabric.clip_gradients(module, optimizer, max_norm=clip, error_if_nonfinite=False)
    elif not scaled:
        gradients = (weight.grad for weight in module.parameters() if weight.grad is not None)
        norm = torch.nn.utils.get_total_norm(gradients)
    # The scaler of fp16 looks for itself, and leaves such a step out.
    if not scaled and not math.isfinite(length := float(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(f"the loss is {values['loss']:.3g}, but the norm of its gradient {length}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return values


def explained(error: Exception, phase: str, epoch: int, rate: float) -> TrainingError | None:
    """What went wrong in a step, and the remedy; None of a fault that is no user's.

    Args:
        error: what :func:`optimizer_step` raised.
        phase: its name.
        epoch: its number, from 1.
        rate: learning rate of the step.
    """
    if isinstance(error, TrainingError):
        return TrainingError(
            f"{error} in {phase}, epoch {epoch}: training diverged; lower the learning rate (now {rate:.2g}) or use "
            "precision fp32"
        )
    if out_of_memory(error):
        return TrainingError(f"there is not enough memory for a step of {phase}; take a smaller --batch-size or --crop")
    if "more than 1 value per channel" in str(error):  # of batch normalisation
        return TrainingError("a batch has too few pixels; take a larger --batch-size or --crop")
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes up a saved state, in the memory layout of the parameters it belongs to.

    A saved tensor comes back in the default layout. Fused optimizers go through weights and moments side by side in
    memory, so beside a channels-last weight a moment in another layout would be paired with the wrong weights.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


class LearningRate:
    """Sets an optimizer's learning rate, step by step.

    Args:
        optimizer: its parameter groups' ``lr`` is written.
        peak: the highest rate.
        steps: optimizer steps in the phase.
        options: schedule, warm-up and patience.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float, steps: int, options: Optimization) -> None:
        self.optimizer = optimizer
        self.peak = peak
        self.steps = steps
        self.options = options
        self.factor = 1.0
        self.bend: tuple[float, float, float] = (0.0, 0.0, 1.0)
        self.best = -math.inf
        self.stale = 0

    def before_step(self, step: int) -> float:
        """Sets the rate of step ``step`` (from 0) and returns it."""
        rate = self.peak * self.factor
        at, begun, speed = self.bend
        place = begun + (step - at) * speed
        if self.options.schedule == "cosine":
            warmup = int(self.options.warmup * self.steps)
            if place < warmup:
                rate = self.peak * (place + 1) / warmup
            else:
                rate = self.peak * 0.5 * (1 + math.cos(math.pi * (place - warmup) / max(self.steps - warmup, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def spread(self, step: int, left: int) -> None:
        """Goes through what is left of the schedule in fewer or more steps, without a jump.

        Args:
            step: the next step.
            left: how many steps the phase still has, at least 1.
        """
        at, begun, speed = self.bend
        begun += (step - at) * speed
        self.bend = (step, begun, (self.steps - begun) / left)

    def after_validation(self, score: float) -> None:
        """Takes note of a validation score (higher is better)."""
        if score > self.best:
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.options.schedule == "plateau" and self.stale > self.options.patience:
            self.factor, self.stale = self.factor / 2, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "factor": self.factor,
            "best": self.best,
            "stale": self.stale,
            "steps": self.steps,
            "bend": list(self.bend),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a saved state."""
        self.factor, self.best, self.stale = float(state["factor"]), float(state["best"]), int(state["stale"])
        self.steps = int(state.get("steps", self.steps))
        at, begun, speed = state.get("bend", self.bend)
        self.bend = (float(at), float(begun), float(speed))
