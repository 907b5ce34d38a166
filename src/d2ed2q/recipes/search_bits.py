"""Find the fewest bits of every learner, without retraining, within a stated loss on the validation images."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from d2ed2q.data import Dataset, Sample, batches, evenly_spread
from d2ed2q.data.dataset import Case
from d2ed2q.ensemble import learner_names
from d2ed2q.errors import AccuracyError, ConfigError
from d2ed2q.quantization import CODEBOOKS
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.inspect_run import TensorFacts, learner_of, tensor_facts, weight_bytes
from d2ed2q.recipes.memory_layout import channels_last
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.rounding import Bits, RoundedEnsemble
from d2ed2q.recipes.run_data import recorded_data, require_held_out
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.train_settings import ONE_DEVICE, TrainSettings
from d2ed2q.recipes.training_parts import fabric_of, training_images
from d2ed2q.recipes.validation import validation_figures
from d2ed2q.report import draw_search

__all__ = ["search_bits"]

_ALL_BITS = tuple(range(8, 1, -1))
_LEAST_LOSS = 0.01  # points; what costs less, or even gains, is chance, and such steps are ordered by their bytes


@dataclasses.dataclass(frozen=True)
class _Point:
    """One measurement, as it stands in ``search.json``."""

    kind: str
    codebook: str
    bits: Bits
    bytes: int
    dice: float
    auc: float | None
    loss: float
    images: int


def search_bits(settings: QuantizeSettings) -> dict[str, Any]:
    """Measures a run with its weights rounded to 8 bits and fewer, and chooses.

    Weights are rounded all at once from the full-precision ones, BatchNorm's statistics are found anew on training
    images (:class:`~d2ed2q.recipes.rounding.RoundedEnsemble`), and the prediction is scored on validation images
    without test-time augmentation. First all learners have the same bits, in every codebook; the one that needs the
    fewest bytes within the tolerance is gone on with. Then each learner is rounded alone. Then, from the most bits that
    are within the tolerance, all together go down one bit of one learner at a time: of the steps that are left the one
    that saves the most bytes for what it cost alone, and it is kept where the whole ensemble stays within the
    tolerance. The smallest of all that were measured is checked on all validation images, and is the choice.

    Returns:
        dict: the content of ``search.json``.

    Raises:
        RunFolderError: the run has not finished.
        ConfigError: an unknown codebook, AUC with several classes, or a run that held no images out.
        DataError: the images are not those that the run was trained on.
        CheckpointError: the full-precision weights are missing or changed.
        AccuracyError: nothing is within the tolerance; what was measured is written all the same.
    """
    torch.set_flush_denormal(True)
    began = time.monotonic()
    run = RunFolder(settings.run)
    card = run.read_card()
    trained: TrainSettings = settings_from(run.config, TrainSettings)
    require_held_out(trained, "a search for bits")
    trained = dataclasses.replace(trained, device=settings.device or trained.device, **ONE_DEVICE)
    codebooks = tuple(dict.fromkeys(settings.codebooks or (settings.codebook or trained.codebook,)))
    for name in codebooks:
        if name not in CODEBOOKS:
            raise ConfigError(f"unknown codebook {name!r}: choose one of {', '.join(CODEBOOKS)}")
    if settings.metric == "auc" and card.n_outputs > 1:
        raise ConfigError("several classes have no AUC; use --metric dice")
    dataset, splits = recorded_data(run, settings.data)
    device = fabric_of(trained).device
    rounded = RoundedEnsemble(
        run.load(full_precision=True).to(device), _training_batches(trained, dataset, splits["train"], settings, device)
    )
    every = [dataset.read(case) for case in splits["validation"]]
    search = _Search(settings, card, rounded, every)
    with _status() as search.tell:
        best_per_bits, chosen = search.run(codebooks)
    names = learner_names(card.learners)
    result: dict[str, Any] = {
        "run": str(run.path),
        "metric": settings.metric,
        "tolerance": settings.tolerance,
        "prediction": search.view,
        "images": len(search.samples),
        "validation_images": len(every),
        "batches": settings.batches,
        "learners": list(names),
        "full_precision": search.reference(search.samples),
        "points": [vars(point) for point in search.points],
        "best_per_bits": [vars(point) for point in best_per_bits],
        "fewest_alone": dict(zip(names, search.fewest_alone, strict=True)),
        "chosen": None if chosen is None else vars(chosen),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json(run.search, result)
    draw_search(result, run.search_picture)
    if chosen is None:
        least = min(best_per_bits, key=lambda point: point.loss)
        if least.loss <= settings.tolerance:
            raise AccuracyError(
                f"{least.bits[0]} bits of codebook {least.codebook} cost {least.loss:.2f} points of {settings.metric} "
                f"on {least.images} images, but nothing found on these is within {settings.tolerance} on all "
                f"{len(every)} validation images; search on more of them with --images {len(every)}"
            )
        raise AccuracyError(
            f"even {least.bits[0]} bits of codebook {least.codebook} cost {least.loss:.2f} points of {settings.metric} "
            f"on {least.images} validation images without retraining, more than {settings.tolerance}; allow more with "
            f"--tolerance, try other --codebooks, or retrain at once: d2ed2q quantize {run.path} --out NEW --bits 8"
        )
    return result


def _training_batches(
    trained: TrainSettings, dataset: Dataset, cases: Sequence[Case], settings: QuantizeSettings, device: torch.device
) -> list[Tensor]:
    images = training_images(trained, dataset, cases)

    def endless() -> Iterator[Tensor]:
        for epoch in count():
            for batch in batches(images, trained.batch_size, epoch, trained.seed, 0):
                yield channels_last(batch["image"].to(device))

    return list(islice(endless(), settings.batches))


@contextlib.contextmanager
def _status() -> Iterator[Any]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield status.update


class _Search:
    def __init__(
        self, settings: QuantizeSettings, card: ModelCard, rounded: RoundedEnsemble, every: Sequence[Sample]
    ) -> None:
        self.metric, self.tolerance = settings.metric, settings.tolerance
        self.card, self.rounded = card, rounded
        self.view = rounded.ensemble.prediction_name
        self.every = every
        self.samples = evenly_spread(every, settings.images)
        if not any(sample.label is not None and sample.label.any() for sample in self.samples):
            self.samples = tuple(every)  # training has seen to it that there is foreground among all of them
        self.n_learners = card.learners + 1
        self.points: list[_Point] = []
        self.fewest_alone: list[int | None] = [None] * self.n_learners
        self.tell: Any = None
        self._facts: dict[tuple[str, int], list[TensorFacts]] = {}
        self._references: dict[int, dict[str, Any]] = {}

    def run(self, codebooks: Sequence[str]) -> tuple[list[_Point], _Point | None]:
        """Measures everything; returns the best codebook's point for every number of bits, and the choice."""
        uniform = {
            (name, bits): self.measure("uniform", name, (bits,) * self.n_learners)
            for name in codebooks
            for bits in _ALL_BITS
        }
        best = [min((uniform[name, bits] for name in codebooks), key=lambda point: point.loss) for bits in _ALL_BITS]
        within = [point for point in uniform.values() if point.loss <= self.tolerance]
        if not within:
            return best, None
        codebook = min(within, key=lambda point: (point.bytes, point.loss)).codebook
        alone = self._alone(codebook)
        most = max(point.bits[0] or 0 for point in within if point.codebook == codebook)
        self._descend(codebook, most, alone)
        return best, self._checked()

    def _alone(self, codebook: str) -> list[dict[int, float]]:
        """Of every learner, what it costs to round it alone to each number of bits."""
        nothing: Bits = (None,) * self.n_learners
        self.rounded.keep(codebook, nothing)
        losses: list[dict[int, float]] = []
        for index in range(self.n_learners):
            points = {bits: self.measure("alone", codebook, _with(nothing, index, bits)).loss for bits in _ALL_BITS}
            self.fewest_alone[index] = min((b for b, loss in points.items() if loss <= self.tolerance), default=None)
            losses.append(points)
        return losses

    def _descend(self, codebook: str, most: int, alone: Sequence[dict[int, float]]) -> None:
        bits: list[int] = [most] * self.n_learners
        open_ = set(range(self.n_learners))
        while open_:
            self.rounded.keep(codebook, tuple(bits))
            worth = {}
            for index in sorted(open_):
                if bits[index] > _ALL_BITS[-1]:
                    fewer = _with(bits, index, bits[index] - 1)
                    saved = self.bytes(codebook, tuple(bits)) - self.bytes(codebook, fewer)
                    cost = max(alone[index][bits[index] - 1] - alone[index][bits[index]], _LEAST_LOSS)
                    worth[index] = saved / cost
            if not worth:
                return
            index = max(worth, key=lambda index: worth[index])
            fewer = _with(bits, index, bits[index] - 1)
            if self.measure("joint", codebook, fewer).loss <= self.tolerance:
                bits[index] -= 1
            else:
                open_.remove(index)

    def _checked(self) -> _Point | None:
        """The smallest combination that is within the tolerance on all validation images too."""
        within = [p for p in self.points if p.kind in ("uniform", "joint") and p.loss <= self.tolerance]
        for point in sorted(within, key=lambda point: (point.bytes, point.loss)):
            if len(self.samples) == len(self.every):
                return point
            checked = self.measure("check", point.codebook, point.bits, self.every)
            if checked.loss <= self.tolerance:
                return checked
        return None

    def reference(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Figures and bytes of the full-precision weights."""
        if len(samples) not in self._references:
            ensemble = self.rounded.round("", (None,) * self.n_learners)
            size = 4 * sum(parameter.numel() for parameter in ensemble.parameters())
            self._references[len(samples)] = {**self._figures(samples), "bytes": size, "images": len(samples)}
        return self._references[len(samples)]

    def measure(self, kind: str, codebook: str, bits: Bits, samples: Sequence[Sample] | None = None) -> _Point:
        """Rounds and scores; what was measured before is not measured again."""
        samples = self.samples if samples is None else samples
        for point in self.points:
            if (point.codebook, point.bits, point.images) == (codebook, bits, len(samples)):
                return point
        reference = self.reference(samples)
        self.tell(f"{codebook}, bits {' '.join('32' if b is None else str(b) for b in bits)}")
        ensemble = self.rounded.round(codebook, bits)
        if kind == "uniform" and bits[0] is not None:
            own = dataclasses.replace(self.card, bits=(bits[0],) * self.n_learners, codebook=codebook)
            self._facts[codebook, bits[0]] = tensor_facts(ensemble, own)
        figures = self._figures(samples)
        loss = (reference[self.metric] - figures[self.metric]) * 100
        size = self.bytes(codebook, bits)
        self.points.append(_Point(kind, codebook, bits, size, figures["dice"], figures["auc"], loss, len(samples)))
        return self.points[-1]

    def bytes(self, codebook: str, bits: Bits) -> int:
        """Size of all weights, those that are rounded by their entropy; every number of bits was measured once."""
        facts = []
        for position, fact in enumerate(self._facts[codebook, _ALL_BITS[0]]):
            own = bits[learner_of(fact.name)]
            plain = dataclasses.replace(fact, entropy=32.0)
            facts.append(plain if own is None else self._facts[codebook, own][position])
        own_card = dataclasses.replace(self.card, bits=(8,) * self.n_learners, codebook=codebook)
        size = weight_bytes(self.rounded.ensemble, own_card, facts)["ensemble_few_bit"]
        assert size is not None  # the card has bits
        return size

    def _figures(self, samples: Sequence[Sample]) -> dict[str, Any]:
        figures = validation_figures(self.rounded.ensemble, self.card, samples)
        return {"dice": figures[f"{self.view}_dice"], "auc": figures.get(f"{self.view}_auc")}


def _with(bits: Sequence[int | None], index: int, own: int) -> Bits:
    return (*bits[:index], own, *bits[index + 1 :])
