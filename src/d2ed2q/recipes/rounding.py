"""An ensemble whose learners are rounded to any number of bits, at once and without retraining, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.quantization import make_codebook, quantizable_weights
from d2ed2q.recipes.inspect_run import learner_of
from d2ed2q.recipes.statistics import estimate_statistics, named_norms

__all__ = ["Bits", "RoundedEnsemble"]

Bits = tuple[int | None, ...]
"""Of the meta learner (and all fusions) and each base learner; None is full precision."""
Variant = tuple[str, int] | None
Learner = tuple[int, Variant]
Features = list[tuple[str, Tensor]]
Hook = Callable[[str, Tensor], Tensor]
_MEMORY = 1 << 30  # bytes of outputs that are kept


class RoundedEnsemble:
    """Rounds the learners of an ensemble, each to bits of its own.

    Rounding moves the means and variances of what BatchNorm sees, and retraining would follow them. So the running
    statistics of every rounded learner are found anew, as the plain average over a few batches of training images; a
    rounded base learner changes what the meta learner gets, so the meta learner's are found anew with any of them. A
    learner in full precision keeps the statistics that were trained.

    Base learners do not see each other: the outputs of those that stay as they are (:meth:`keep`) are replayed instead
    of computed.

    Args:
        ensemble: in full precision, in evaluation mode; it is changed in place.
        batches: images of training batches, each ``B×C×*spatial``.
        memory: bytes of outputs to keep at most.
    """

    def __init__(self, ensemble: DeepEnsemble, batches: Sequence[Tensor], memory: int = _MEMORY) -> None:
        self.ensemble = ensemble
        self._batches = batches
        self._weights = [(learner_of(weight.name), weight) for weight in quantizable_weights(ensemble)]
        self._own = [weight.parameter.detach().clone() for _, weight in self._weights]
        n_learners = ensemble.n_base + 1
        self._norms: list[list[_BatchNorm]] = [[] for _ in range(n_learners)]
        for name, norm in named_norms(ensemble):
            self._norms[learner_of(name)].append(norm)
        self._current: list[Variant] = [None] * n_learners
        self._statistics: dict[Learner, list[tuple[Tensor, Tensor]]] = {
            (index, None): _copies(norms) for index, norms in enumerate(self._norms)
        }
        self._outputs = _Outputs(memory)
        self._learners = list(ensemble.base)
        for index, learner in enumerate(self._learners):
            ensemble.base[index] = _Replayed(learner, index + 1, self._outputs, self._current)

    @torch.no_grad()
    def round(self, codebook: str, bits: Bits) -> DeepEnsemble:
        """Rounds every learner to its bits.

        Returns:
            DeepEnsemble: the one ensemble there is, until it is rounded anew.
        """
        variants: list[Variant] = [None if b is None else (codebook, b) for b in bits]
        for (index, weight), own in zip(self._weights, self._own, strict=True):
            variant = variants[index]
            if variant != self._current[index]:
                weight.parameter.copy_(own if variant is None else _rounded(own, *variant, weight.channel_axis))
        self._current[:] = variants
        for index, learner in enumerate(self._learners, 1):
            key = (index, variants[index])
            if key not in self._statistics:
                self._estimate(self._norms[index], learner)
                self._statistics[key] = _copies(self._norms[index])
            _restore(self._norms[index], self._statistics[key])
        if any(bits):
            self._estimate(self._norms[0], None)
        else:
            _restore(self._norms[0], self._statistics[0, None])
        return self.ensemble

    def keep(self, codebook: str, bits: Bits) -> None:
        """Keeps the outputs of base learners at these bits, and no others, to be replayed."""
        self._outputs.keep({(index, None if b is None else (codebook, b)) for index, b in enumerate(bits)})

    def _estimate(self, norms: Sequence[_BatchNorm], learner: nn.Module | None) -> None:
        """Finds running statistics anew while the batches go through a base learner, or through the whole ensemble."""

        def run(image: Tensor) -> object:
            if learner is None:
                return self.ensemble(image)
            return learner(image * self.ensemble.input_scale + self.ensemble.input_shift)

        estimate_statistics(norms, run, self._batches)


def _rounded(weight: Tensor, codebook: str, bits: int, channel_axis: int) -> Tensor:
    return make_codebook(weight, bits, codebook, channel_axis).quantize(weight)


def _copies(norms: Sequence[_BatchNorm]) -> list[tuple[Tensor, Tensor]]:
    return [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]


def _restore(norms: Sequence[_BatchNorm], statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    for norm, (mean, variance) in zip(norms, statistics, strict=True):
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]


class _Outputs:
    """Features and logits of base learners, of the variants that are kept, as long as there is memory."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self.kept: set[Learner] = set()
        self.found: dict[tuple[Learner, bytes], tuple[Features, Tensor]] = {}

    def keep(self, kept: set[Learner]) -> None:
        self.kept = kept
        self.found = {key: output for key, output in self.found.items() if key[0] in kept}

    def add(self, learner: Learner, image: bytes, features: Features, logits: Tensor) -> None:
        if _size(features, logits) <= self._memory - sum(_size(*output) for output in self.found.values()):
            self.found[learner, image] = (features, logits)


def _size(features: Features, logits: Tensor) -> int:
    return sum(feature.nbytes for _, feature in features) + logits.nbytes


class _Replayed(nn.Module):
    """A base learner that goes through its taps again without computing anything, where its output is known."""

    def __init__(self, learner: nn.Module, index: int, outputs: _Outputs, current: Sequence[Variant]) -> None:
        super().__init__()
        self.learner = learner
        self._index, self._outputs, self._current = index, outputs, current

    def forward(self, x: Tensor, at_tap: Hook) -> Tensor:
        learner = (self._index, self._current[self._index])
        if learner not in self._outputs.kept:
            logits: Tensor = self.learner(x, at_tap)
            return logits
        image = hashlib.sha256(x.detach().cpu().numpy().tobytes()).digest() + str(tuple(x.shape)).encode()
        known = self._outputs.found.get((learner, image))
        if known is not None:
            for name, feature in known[0]:
                at_tap(name, feature)
            return known[1]
        features: Features = []

        def record(name: str, feature: Tensor) -> Tensor:
            features.append((name, feature))
            return at_tap(name, feature)

        logits = self.learner(x, record)
        self._outputs.add(learner, image, features, logits)
        return logits
