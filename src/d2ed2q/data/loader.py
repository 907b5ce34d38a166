"""Training images in memory, augmented anew each epoch and stacked to batches in the background."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import data

from d2ed2q.data.dataset import Case, Dataset
from d2ed2q.data.geometry import POINTS
from d2ed2q.data.resampling import resize_linear
from d2ed2q.data.resolution import Resolution
from d2ed2q.data.sample import Sample
from d2ed2q.data.standardization import standardized
from d2ed2q.data.transforms import TrainingAugmentation, aspect_of
from d2ed2q.errors import ConfigError, DataError

__all__ = ["TrainingSet", "batches", "epoch_order"]

OWN_RESOLUTION = Resolution()
_POINTS_PER_CLASS = 4096


class TrainingSet(data.Dataset[dict[str, Tensor]]):
    """The training cases of a dataset, read once, and augmented anew each time they are asked for.

    Item i of epoch e is a function of (seed, e, i) alone, so training that is interrupted and resumed sees the same
    images. Between the epochs photographs are kept with 8 bits a channel, as they come from the files, and all else
    with 16.

    Args:
        dataset: what the cases belong to.
        cases: the cases to train on.
        augmentation: what is done to them.
        seed: 0 or more.
        resolution: what images are brought to before they are augmented; a ``resize`` is left to the augmentation.
        standardize: whether pictures are :func:`~d2ed2q.data.standardization.standardized` before that.

    Raises:
        ConfigError: the seed is negative, the crop has another number of axes than the images, or volumes are to be
            resized or standardized.
        DataError: there are no cases, one cannot be read or has no mask, or a class never occurs.
    """

    def __init__(
        self,
        dataset: Dataset,
        cases: Sequence[Case],
        augmentation: TrainingAugmentation,
        seed: int,
        resolution: Resolution = OWN_RESOLUTION,
        standardize: bool = False,
    ) -> None:
        if seed < 0:
            raise ConfigError(f"the seed must be 0 or more, got {seed}")
        if not cases:
            raise DataError(f"there are no training images in {dataset.root}; add some")
        if augmentation.crop is not None and len(augmentation.crop) != dataset.dims:
            raise ConfigError(
                f"crop takes {dataset.dims} sizes for the images in {dataset.root}, got {augmentation.crop}"
            )
        if augmentation.resize is not None and dataset.dims != 2:
            raise ConfigError(f"resize takes pictures, {dataset.root} has volumes; use spacing or scale")
        if standardize and dataset.dims != 2:
            raise ConfigError(f"standardize takes pictures, {dataset.root} has volumes; leave it out")
        self._items: list[dict[str, Any]] = []
        counts = np.zeros(len(dataset.classes), dtype=np.int64)
        for case in cases:
            sample = dataset.read(case)
            if sample.label is None:
                raise DataError(f"{case.image} has no mask to train on; add one, or remove the image")
            inside = sample.label if sample.roi is None else sample.label[sample.roi]
            counts += np.bincount(inside.flatten().numpy(), minlength=len(counts))
            if standardize:
                sample = dataclasses.replace(sample, image=torch.from_numpy(standardized(sample.image.numpy())))
            self._items.append(_item(sample, dataset, resolution, augmentation.foreground > 0))
        if not counts[1:].any():
            raise DataError(f"all {len(cases)} training masks of {dataset.root} are background only; correct the masks")
        for name, count in zip(dataset.classes, counts, strict=True):
            if not count:
                held = len(dataset.train) + len(dataset.validation) > len(cases)
                raise DataError(
                    f"the class {name!r} never occurs in the {len(cases)} training images of {dataset.root}; add some "
                    f"that show it, {'take another --seed if those held out do, ' if held else ''}or leave it out of "
                    f"the classes"
                )
        self._augmentation = augmentation
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Bytes of all cases as they are kept in memory."""
        tensors = (tensor for item in self._items for tensor in item.values() if isinstance(tensor, Tensor))
        return sum(tensor.nbytes for tensor in tensors)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose items indexing gives."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Item ``index`` of the chosen epoch; see :meth:`draw`."""
        return self.draw(index, self._epoch)

    def draw(self, index: int, epoch: int, repetition: int = 0) -> dict[str, Tensor]:
        """Augments one case.

        Args:
            index: which case, 0…len−1.
            epoch: which epoch.
            repetition: how often the case was drawn in this epoch before; each time it is augmented in another way.

        Returns:
            dict: ``image`` float32 ``C×*spatial`` in [0, 1], ``label`` int64 and ``roi`` bool of the spatial shape.
        """
        seeds = np.random.SeedSequence((self._seed, epoch, index, repetition))
        return self._augmentation.augment_tensors(self._items[index], int(seeds.generate_state(1)[0]))


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of n items in an epoch; the same arguments always give the same order."""
    order: list[int] = np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(n).tolist()
    return order


def batches(
    training_set: TrainingSet,
    batch_size: int,
    epoch: int,
    seed: int,
    workers_threads: int = 1,
    images: int | None = None,
    part: tuple[int, int] = (0, 1),
    first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """All batches of one epoch, or those that are left of it, each made while the one before is in use.

    All batches have the same size: the last one is filled up with items from the start of the epoch's order, augmented
    in another way than the first time.

    Args:
        training_set: the items.
        batch_size: items a batch.
        epoch: decides order and augmentation.
        seed: decides the order.
        workers_threads: threads that make batches in advance; 0 makes each when it is asked for. The batches are the
            same with any number.
        images: how many items make an epoch; the next epoch goes on with the following ones. None takes all.
        part: ``(r, n)`` makes of every batch only the items r, r + n, r + 2n, …, for process r of n that share it.
        first: position of the first batch that is made.

    Yields:
        dict: ``image`` float32 ``B×C×*spatial``, ``label`` int64 and ``roi`` bool ``B×*spatial``.

    Raises:
        ConfigError: the batch size, or the number of threads or of images, is out of range, or batches cannot be
            divided into equal parts.
        DataError: images of one batch differ in size.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be at least 1, got {batch_size}")
    if workers_threads < 0:
        raise ConfigError(f"the number of loader threads must be 0 or more, got {workers_threads}")
    if images is not None and images < 1:
        raise ConfigError(f"an epoch has at least 1 image, got {images}")
    if batch_size % part[1]:
        raise ConfigError(f"a batch of {batch_size} images cannot be divided among {part[1]} processes")
    order = _order(len(training_set), seed, epoch, images)
    n_batches = -(-len(order) // batch_size)
    seen: Counter[int] = Counter()
    draws = []
    for position in range(n_batches * batch_size):
        index = order[position % len(order)]
        draws.append((index, seen[index]))
        seen[index] += 1
    plan = [draws[start + part[0] : start + batch_size : part[1]] for start in range(0, len(draws), batch_size)]
    plan = plan[first:]

    def make(items: list[tuple[int, int]]) -> dict[str, Tensor]:
        return _stacked([training_set.draw(index, epoch, repetition) for index, repetition in items])

    if workers_threads == 0:
        yield from map(make, plan)
        return
    pending: deque[Future[dict[str, Tensor]]] = deque()
    # PyTorch's number of threads is each thread's own. One is enough for small tensors and leaves the cores to the
    # training step: teams of threads that wait for each other cost many times what they save.
    pool = ThreadPoolExecutor(
        workers_threads, thread_name_prefix="d2ed2q-batches", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        ahead = iter(plan)
        for _, items in zip(range(workers_threads), ahead, strict=False):
            pending.append(pool.submit(make, items))
        while pending:
            batch = pending.popleft().result()
            following = next(ahead, None)
            if following is not None:
                pending.append(pool.submit(make, following))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _order(n: int, seed: int, epoch: int, images: int | None) -> list[int]:
    """The items of an epoch: all n, or so many of them, one pass over all n going on where the last epoch ended."""
    if images is None or images == n:
        return epoch_order(n, seed, epoch)
    first = epoch * images
    passes = {number: epoch_order(n, seed, number) for number in range(first // n, (first + images - 1) // n + 1)}
    return [passes[position // n][position % n] for position in range(first, first + images)]


def _item(sample: Sample, dataset: Dataset, resolution: Resolution, with_points: bool) -> dict[str, Any]:
    """A sample as it is kept between epochs."""
    assert sample.label is not None  # checked before
    roi = torch.ones_like(sample.label, dtype=torch.bool) if sample.roi is None else sample.roi
    image, label = sample.image, sample.label.to(torch.uint8)
    if resolution.resize is None:
        size = resolution.size(label.shape, sample.spacing, f"image {sample.id!r}")
        if size != tuple(label.shape):
            image = torch.from_numpy(resize_linear(image.numpy(), size, antialias=True)).clamp_(0, 1)
            masks = [mask[None, None].to(torch.uint8) for mask in (label, roi)]
            label, roi = (F.interpolate(mask, size, mode="nearest-exact")[0, 0] for mask in masks)
            roi = roi.bool()
    compact = (image * 255).round().to(torch.uint8) if dataset.intensity.rule == "byte" else image.half()
    # Sizes are rounded when images are resampled, so that only what is left of millimetres a pixel is exact.
    spacing = None
    if sample.spacing is not None:
        spacing = [
            step * have / now for step, have, now in zip(sample.spacing, sample.label.shape, label.shape, strict=True)
        ]
    item: dict[str, Any] = {"image": compact, "label": label, "roi": roi, "aspect": aspect_of(spacing)}
    if with_points:
        item[POINTS] = _points(label, roi)
    return item


def _points(label: Tensor, roi: Tensor) -> list[Tensor]:
    """For each foreground class that occurs, positions of it, evenly spread over all."""
    found = []
    for number in range(1, int(label.max()) + 1):
        positions = torch.nonzero((label == number) & roi)
        if len(positions):
            found.append(positions[:: -(-len(positions) // _POINTS_PER_CLASS)].to(torch.int32))
    return found


def _stacked(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    sizes = {tuple(item["image"].shape[1:]) for item in items}
    if len(sizes) > 1:
        one, other = ("×".join(map(str, reversed(size))) for size in sorted(sizes)[:2])
        raise DataError(f"images of {one} and {other} pixels cannot be in one batch; set crop or resize")
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}
