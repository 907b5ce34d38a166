"""Incremental quantization of any module: quantize a part, freeze it, let the rest retrain, and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2ed2q.errors import CheckpointError, ConfigError, first_line
from d2ed2q.quantization.codebooks import CODEBOOKS, Codebook, check_bits, make_codebook, require_finite
from d2ed2q.quantization.partition import RELEASED_FRACTIONS, check_fractions, cumulative_count, two_stage_partition
from d2ed2q.quantization.scope import QuantizableWeight, quantizable_weights

__all__ = ["IncrementalQuantizer"]


@dataclass
class _Entry:
    weight: QuantizableWeight
    bits: int
    frozen: Tensor
    values: Tensor  # what the frozen weights are held at; meaningless where `frozen` is False
    codebook: Codebook | None = None

    def follow_device(self) -> None:
        """The module may have been moved to another device since the quantizer was made."""
        device = self.weight.parameter.device
        if self.frozen.device != device:
            self.frozen, self.values = self.frozen.to(device), self.values.to(device)
            self.codebook = self.codebook.to(device) if self.codebook is not None else None


class IncrementalQuantizer:
    """Turns a module's convolution and linear weights into a few bits, step by step.

    Each :meth:`advance` chooses the next part of every tensor (two-stage partition), rounds it to the tensor's
    codebook and freezes it: gradients of frozen weights are zeroed, and after every step of an attached optimizer they
    are set back to the bit, whatever momentum, weight decay or mixed precision did to them. After the last step every
    weight in scope is frozen; BatchNorm and biases go on training.

    Args:
        module: any ``torch.nn.Module``.
        bits: bits for all weights, or a mapping from a name's prefix to bits (``{"meta": 5, "base.0": 4}``); the
            longest matching prefix counts, and every weight must match one (``""`` matches all).
        codebook: one of :data:`~d2ed2q.quantization.codebooks.CODEBOOKS`.
        fractions: share of each tensor that each step quantizes; they add up to 1.
        random: draw at random among the largest (stage two); False is plain INQ.
        seed: seed of the draws; the same seed and weights give the same partition.

    Raises:
        ConfigError: bits outside 2…8, unknown codebook, fractions that do not add up to 1, a prefix that matches no
            weight, a weight that matches no prefix, or nothing to quantize.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1))
        >>> optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        >>> quantizer = IncrementalQuantizer(network, bits=4)
        >>> quantizer.attach(optimizer)
        >>> while quantizer.advance():
        ...     _ = network(torch.rand(1, 3, 8, 8)).mean().backward(); optimizer.step()  # retrain here
        >>> quantizer.frozen_fraction
        1.0
    """

    def __init__(
        self,
        module: nn.Module,
        bits: int | Mapping[str, int] = 5,
        codebook: str = "geometric",
        fractions: Sequence[float] = RELEASED_FRACTIONS,
        random: bool = True,
        seed: int = 0,
    ) -> None:
        if codebook not in CODEBOOKS:
            raise ConfigError(f"unknown codebook {codebook!r}: choose one of {', '.join(CODEBOOKS)}")
        self.codebook = codebook
        self.fractions = check_fractions(fractions)
        self.random = random
        self.seed = seed
        self.step = 0
        weights = quantizable_weights(module)
        if not weights:
            raise ConfigError("the module has no convolution or linear weights to quantize")
        by_prefix = bits if isinstance(bits, Mapping) else {"": bits}
        resolved = _resolve_bits([weight.name for weight in weights], by_prefix)
        self._entries: list[_Entry] = []
        for weight in weights:
            parameter = weight.parameter
            entry = _Entry(
                weight,
                resolved[weight.name],
                torch.zeros_like(parameter, dtype=torch.bool),
                torch.zeros_like(parameter, requires_grad=False),
            )
            self._entries.append(entry)
            if parameter.requires_grad:
                hook = _zero_frozen_gradient(entry)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch lacks it

    @property
    def n_steps(self) -> int:
        """Number of quantization steps."""
        return len(self.fractions)

    @property
    def done(self) -> bool:
        """Whether every weight in scope is quantized."""
        return self.step >= self.n_steps

    @property
    def frozen_fraction(self) -> float:
        """Share of the weights in scope that are quantized and frozen, 0…1."""
        total = sum(entry.frozen.numel() for entry in self._entries)
        return sum(int(entry.frozen.sum()) for entry in self._entries) / total

    @property
    def bits(self) -> dict[str, int]:
        """Bits of every weight in scope, by name."""
        return {entry.weight.name: entry.bits for entry in self._entries}

    @property
    def frozen(self) -> dict[str, Tensor]:
        """For every weight in scope, by name, where it is frozen (bool, the weight's shape)."""
        return {entry.weight.name: entry.frozen for entry in self._entries}

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """The codebook of every weight in scope, by name; empty before the first step."""
        return {entry.weight.name: entry.codebook for entry in self._entries if entry.codebook is not None}

    @torch.no_grad()
    def advance(self) -> bool:
        """Quantizes and freezes the next part of every tensor.

        The codebooks are made at the first call, from the weights as they are then.

        Returns:
            bool: False, and nothing is changed, if all steps were done before.

        Raises:
            ConfigError: a weight is NaN or infinite; nothing is changed.
        """
        if self.done:
            return False
        for entry in self._entries:  # of NaN the largest level would be made, and nobody would see it
            require_finite(entry.weight.parameter)
        for index, entry in enumerate(self._entries):
            parameter = entry.weight.parameter
            entry.follow_device()
            if entry.codebook is None:
                entry.codebook = make_codebook(parameter, entry.bits, self.codebook, entry.weight.channel_axis)
            target = cumulative_count(parameter.numel(), self.fractions, self.step)
            # One generator a tensor and step: the draw does not depend on what was drawn before, so neither on resume.
            generator = torch.Generator().manual_seed(_mix(self.seed, self.step, index))
            count = target - int(entry.frozen.sum())
            chosen = two_stage_partition(parameter, entry.frozen, count, generator, self.random)
            entry.values.copy_(entry.codebook.quantize_where(chosen, parameter, entry.values))
            entry.frozen.logical_or_(chosen)
        self.step += 1
        self.restore()
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Sets every frozen weight back to its quantized value, to the bit."""
        if self.step == 0:
            return
        for entry in self._entries:
            parameter = entry.weight.parameter
            entry.follow_device()
            parameter.copy_(torch.where(entry.frozen, entry.values, parameter))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes every ``optimizer.step()`` from now on end with :meth:`restore`."""
        optimizer.register_step_post_hook(lambda *_: self.restore())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, except the weights themselves."""
        weights = {}
        for entry in self._entries:
            book = entry.codebook
            weights[entry.weight.name] = {
                "frozen": entry.frozen,
                "bits": entry.bits,
                "codebook": None if book is None else {key: value for key, value in vars(book).items()},
            }
        return {"step": self.step, **self._given(), "weights": weights}

    def _given(self) -> dict[str, Any]:
        """By which the steps to come choose and round."""
        fractions = list(self.fractions)
        return {"codebook": self.codebook, "fractions": fractions, "random": self.random, "seed": self.seed}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; load the module's own weights first.

        Raises:
            CheckpointError: the state is damaged, belongs to another module, or is of other bits, fractions, seed or
                another codebook.
        """
        try:
            self._take_up(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the quantization state is damaged: {first_line(error)}") from error

    def _take_up(self, state: Mapping[str, Any]) -> None:
        for name, given in self._given().items():
            if (saved := state.get(name, given)) != given:
                raise CheckpointError(f"the quantization state has {name} {saved}, and the quantizer {given}")
        if not 0 <= int(state["step"]) <= self.n_steps:
            raise CheckpointError(f"the quantization state is of step {state['step']}, and there are {self.n_steps}")
        names = {entry.weight.name for entry in self._entries}
        if names != set(state["weights"]):
            odd = sorted(names ^ set(state["weights"]))[0]
            raise CheckpointError(f"the quantization state is of another architecture: {odd} is only in one of the two")
        for entry in self._entries:
            saved = state["weights"][entry.weight.name]
            if saved["frozen"].shape != entry.frozen.shape or saved["bits"] != entry.bits:
                raise CheckpointError(f"the quantization state of {entry.weight.name} has another shape or other bits")
            entry.follow_device()
            entry.frozen.copy_(saved["frozen"])
            entry.values.copy_(entry.weight.parameter)
            book = saved["codebook"]
            entry.codebook = None if book is None else Codebook(**book).to(entry.frozen.device)
        self.step = int(state["step"])


def _zero_frozen_gradient(entry: _Entry) -> Any:
    def hook(parameter: Tensor) -> None:
        # Otherwise frozen weights would count in the clipped norm and fill the optimizer's moments.
        if parameter.grad is not None:
            entry.follow_device()
            parameter.grad.masked_fill_(entry.frozen, 0)

    return hook


def _resolve_bits(names: Sequence[str], by_prefix: Mapping[str, int]) -> dict[str, int]:
    def matches(name: str, prefix: str) -> bool:
        return not prefix or name == prefix or name.startswith(prefix + ".")

    for prefix, bits in by_prefix.items():
        check_bits(bits)
        if not any(matches(name, prefix) for name in names):
            raise ConfigError(f"bits are given for {prefix!r}, but no weight of the module begins with it")
    resolved = {}
    for name in names:
        prefixes = [prefix for prefix in by_prefix if matches(name, prefix)]
        if not prefixes:
            raise ConfigError(f"no bits are given for {name}: add its prefix, or '' for all that is not named")
        resolved[name] = by_prefix[max(prefixes, key=len)]
    return resolved


def _mix(seed: int, step: int, index: int) -> int:
    # Distinct for any number of tensors and steps that memory could hold; generators take 63 bits.
    return ((seed * 1_000_003 + step) * 1_000_033 + index) % 2**63
