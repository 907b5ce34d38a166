"""What is really in a run's weights: learners, bits, distinct values found per tensor, bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from d2ed2q.ensemble import DeepEnsemble, learner_names
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes.run_folder import ModelCard, RunFolder

__all__ = ["TensorFacts", "inspect_run", "learner_of", "tensor_facts", "weight_bytes"]


@dataclass(frozen=True)
class TensorFacts:
    """One weight tensor, as found.

    Attributes:
        name: dotted name in the ensemble.
        learner: ``meta`` (fusion blocks included), ``base_k``, or ``network`` where there is but one.
        shape: of the tensor.
        bits: as set in training; None where not quantized.
        distinct: distinct values in the whole tensor.
        distinct_per_channel: the most distinct values in any output channel.
        entropy: bits a weight that a perfect compressor would need, from the frequencies of the tensor's values
            (of its codes, each channel divided by its largest magnitude).
    """

    name: str
    learner: str
    shape: tuple[int, ...]
    bits: int | None
    distinct: int
    distinct_per_channel: int
    entropy: float


def learner_of(name: str) -> int:
    """Which learner a dotted name in the ensemble belongs to: 0 for meta learner and fusions, k for base learner k."""
    part = name.split(".")
    return int(part[1]) + 1 if part[0] == "base" else 0


def tensor_facts(ensemble: DeepEnsemble, card: ModelCard) -> list[TensorFacts]:
    """Counts the values in every convolution and linear weight of an ensemble."""
    facts = []
    names = learner_names(ensemble.n_base)
    for weight in quantizable_weights(ensemble):
        index = learner_of(weight.name)
        rows = weight.parameter.detach().movedim(weight.channel_axis, 0).flatten(1)
        scaled = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        # Only geometric levels are per channel; the others are the same in all channels as they are.
        codes = torch.round(scaled * 127 * 64) if card.codebook in (None, "geometric") else rows
        counts = torch.unique(codes, return_counts=True)[1].double()
        share = counts / counts.sum()
        facts.append(
            TensorFacts(
                name=weight.name,
                learner=names[index],
                shape=tuple(weight.parameter.shape),
                bits=card.bits[index] if card.bits is not None else None,
                distinct=len(torch.unique(rows)),
                distinct_per_channel=max(len(torch.unique(row)) for row in rows),
                entropy=float(-(share * share.log2()).sum()),
            )
        )
    return facts


class WeightBytes(TypedDict):
    """Sizes in bytes; see :func:`weight_bytes`."""

    one_float_learner: int
    ensemble_float: int
    ensemble_few_bit: int | None


def weight_bytes(ensemble: DeepEnsemble, card: ModelCard, facts: Sequence[TensorFacts]) -> WeightBytes:
    """Sizes of an ensemble's parameters, in bytes.

    Returns:
        WeightBytes: ``ensemble_few_bit`` counts quantized weights by their entropy, which a good compressor comes near
        to, and the rest as float32; it is None where nothing is quantized.
    """
    parameters = sum(parameter.numel() for parameter in ensemble.parameters())
    few_bit = None
    if card.bits is not None:
        in_scope = sum(math.prod(fact.shape) for fact in facts)
        entropy = sum(fact.entropy * math.prod(fact.shape) for fact in facts)
        few_bit = round(entropy / 8) + 4 * (parameters - in_scope)
    return {
        "one_float_learner": 4 * sum(parameter.numel() for parameter in ensemble.meta.parameters()),
        "ensemble_float": 4 * parameters,
        "ensemble_few_bit": few_bit,
    }


def inspect_run(path: Path) -> dict[str, Any]:
    """Reads a run and counts what is in its weights.

    Returns:
        dict: ``backbone``, ``prediction``, ``threshold``, ``cleaning``, ``codebook``, ``learners`` (for each:
        parameters, quantized weights, bits, the most distinct values in a channel, entropy in bits a weight),
        ``tensors`` (one :class:`TensorFacts` each), ``parameters``, and ``bytes`` of :func:`weight_bytes`.

    Raises:
        RunFolderError: the run has not finished.
        CheckpointError: its weights cannot be used.
    """
    run = RunFolder(path)
    card = run.read_card()
    ensemble = run.load()
    facts = tensor_facts(ensemble, card)
    learners = {}
    for index, name in enumerate(learner_names(card.learners)):
        own = [fact for fact in facts if fact.learner == name]
        count = sum(math.prod(fact.shape) for fact in own)
        learners[name] = {
            "quantized_weights": count,
            "bits": card.bits[index] if card.bits is not None else None,
            "distinct_per_channel": max(fact.distinct_per_channel for fact in own),
            "entropy": sum(fact.entropy * math.prod(fact.shape) for fact in own) / count,
        }
    return {
        "run": str(path),
        "backbone": card.backbone,
        "classes": list(card.classes),
        "codebook": card.codebook,
        "prediction": card.prediction,
        "threshold": card.thresholds[card.prediction],
        "cleaning": None if card.cleaning is None else vars(card.cleaning),
        "parameters": sum(parameter.numel() for parameter in ensemble.parameters()),
        "learners": learners,
        "bytes": weight_bytes(ensemble, card, facts),
        "tensors": [vars(fact) for fact in facts],
    }
