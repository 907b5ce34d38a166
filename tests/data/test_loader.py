"""Training sets and their batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from d2ed2q.data import TrainingAugmentation, TrainingSet, batches, epoch_order, open_dataset
from d2ed2q.errors import ConfigError, DataError

FolderMaker = Callable[..., Path]
AUGMENTATION = TrainingAugmentation(crop=(64, 64))


@pytest.fixture
def training_set(phantoms: Path) -> TrainingSet:
    dataset = open_dataset(phantoms)
    return TrainingSet(dataset, dataset.train, AUGMENTATION, seed=1)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("d2ed2q-batches")]


def test_items_are_a_function_of_seed_epoch_and_index(phantoms: Path, training_set: TrainingSet) -> None:
    dataset = open_dataset(phantoms)
    same = TrainingSet(dataset, dataset.train, AUGMENTATION, seed=1)
    other = TrainingSet(dataset, dataset.train, AUGMENTATION, seed=2)
    assert len(training_set) == 4
    for epoch in (0, 5):
        training_set.set_epoch(epoch)
        same.set_epoch(epoch)
        assert _equal(training_set[2], same[2])
    assert _equal(training_set[2], training_set.draw(2, 5))
    assert not _equal(training_set.draw(2, 5), other.draw(2, 5))
    assert not _equal(training_set.draw(2, 5), training_set.draw(2, 6))
    assert not _equal(training_set.draw(2, 5), training_set.draw(3, 5))


def test_keeping_8_bits_loses_nothing(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    still = TrainingAugmentation(flip=0, turn=0, affine=0, color=0)
    item = TrainingSet(dataset, dataset.train, still, seed=0)[1]
    sample = dataset.read(dataset.train[1])
    assert sample.label is not None
    assert sample.roi is not None
    assert torch.equal(item["image"], sample.image)
    assert torch.equal(item["label"], sample.label)
    assert torch.equal(item["roi"], sample.roi)


def test_epoch_order_is_a_permutation_of_its_own_in_each_epoch() -> None:
    assert sorted(epoch_order(30, 0, 0)) == list(range(30))
    assert epoch_order(30, 0, 3) == epoch_order(30, 0, 3)
    assert len({tuple(epoch_order(30, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_same_with_any_number_of_threads(training_set: TrainingSet, threads: int) -> None:
    found = list(batches(training_set, 2, 4, 9, threads))
    order = epoch_order(4, 9, 4)
    expected = [torch.stack([training_set.draw(i, 4)["image"] for i in order[start : start + 2]]) for start in (0, 2)]
    assert len(found) == 2
    assert all(torch.equal(batch["image"], images) for batch, images in zip(found, expected, strict=True))
    assert not _loader_threads()


def test_what_is_left_of_an_epoch_is_made_alone(training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(batches(training_set, 2, 4, 9))
    made: list[int] = []
    draw = training_set.draw

    def counted(index: int, *rest: int) -> dict[str, torch.Tensor]:
        made.append(index)
        return draw(index, *rest)

    monkeypatch.setattr(training_set, "draw", counted)
    (left,) = batches(training_set, 2, 4, 9, first=1)
    assert all(torch.equal(left[key], whole[1][key]) for key in whole[1])
    assert made == epoch_order(4, 9, 4)[2:]
    assert list(batches(training_set, 2, 4, 9, first=2)) == []


def test_last_batch_is_filled_up_with_other_views(training_set: TrainingSet) -> None:
    found = list(batches(training_set, 3, 0, 0))
    assert [tuple(batch["image"].shape) for batch in found] == [(3, 3, 64, 64)] * 2
    assert [tuple(batch["label"].shape) for batch in found] == [(3, 64, 64)] * 2
    first = epoch_order(4, 0, 0)[0]
    assert torch.equal(found[1]["image"][1], training_set.draw(first, 0, repetition=1)["image"])
    assert not torch.equal(found[1]["image"][1], found[0]["image"][0])


def test_batch_larger_than_the_set(training_set: TrainingSet) -> None:
    (batch,) = batches(training_set, 10, 0, 0)
    images = {image.numpy().tobytes() for image in batch["image"]}
    assert len(images) == 10


def test_closing_early_stops_the_thread(training_set: TrainingSet) -> None:
    stream = batches(training_set, 1, 0, 0)
    next(stream)
    assert _loader_threads()
    stream.close()  # type: ignore[attr-defined]
    assert not _loader_threads()


def test_errors_of_the_thread_reach_the_caller(training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DataError("broken on purpose")

    monkeypatch.setattr(training_set, "draw", fail)
    with pytest.raises(DataError, match="broken on purpose"):
        next(batches(training_set, 2, 0, 0))
    assert not _loader_threads()


def test_threads_of_the_training_step_are_left_alone(training_set: TrainingSet) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(batches(training_set, 2, 0, 0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_of_several_sizes_need_a_crop(make_folder: FolderMaker) -> None:
    root = make_folder()
    for folder, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (40, 24)).save(root / folder / "case_1.png")
    dataset = open_dataset(root)
    with pytest.raises(DataError, match="32×24 and 40×24 pixels cannot be in one batch; set crop or resize"):
        list(batches(TrainingSet(dataset, dataset.train, TrainingAugmentation(), 0), 3, 0, 0))
    cropped = TrainingSet(dataset, dataset.train, TrainingAugmentation(crop=(16, 16)), 0)
    assert len(list(batches(cropped, 3, 0, 0))) == 1


def test_all_background_masks_are_refused(make_folder: FolderMaker) -> None:
    dataset = open_dataset(make_folder([np.zeros((24, 32), np.uint8)] * 3))
    with pytest.raises(DataError, match=r"all 3 training masks of .* are background only"):
        TrainingSet(dataset, dataset.train, AUGMENTATION, 0)


def test_foreground_outside_the_region_only_is_refused(make_folder: FolderMaker) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[0] = 255
    root = make_folder([mask] * 2)
    (root / "roi").mkdir()
    for index in range(2):
        Image.fromarray(255 - mask).save(root / "roi" / f"case_{index}.png")
    dataset = open_dataset(root)
    with pytest.raises(DataError, match="background only"):
        TrainingSet(dataset, dataset.train, AUGMENTATION, 0)


def test_one_background_mask_among_others_is_fine(make_folder: FolderMaker) -> None:
    masks = [np.zeros((24, 32), np.uint8), np.full((24, 32), 255, np.uint8)]
    dataset = open_dataset(make_folder(masks))
    assert len(TrainingSet(dataset, dataset.train, AUGMENTATION, 0)) == 2


def test_a_class_that_only_held_out_images_show_is_told_from_one_that_none_shows(make_folder: FolderMaker) -> None:
    masks = [np.repeat(np.arange(3, dtype=np.uint8)[[0, 1, index]], 256).reshape(24, 32) for index in (0, 1, 2)]
    dataset = open_dataset(make_folder(masks))
    plain = TrainingAugmentation(crop=(16, 16))
    with pytest.raises(DataError, match="take another --seed if those held out do, or leave it out of the classes"):
        TrainingSet(dataset, dataset.train[:2], plain, 0)


def test_no_cases_are_refused(phantoms: Path) -> None:
    with pytest.raises(DataError, match="no training images"):
        TrainingSet(open_dataset(phantoms), [], AUGMENTATION, 0)


@pytest.mark.parametrize(("size", "threads"), [(0, 1), (2, -1)])
def test_numbers_out_of_range_are_refused(training_set: TrainingSet, size: int, threads: int) -> None:
    with pytest.raises(ConfigError, match="must be"):
        next(batches(training_set, size, 0, 0, threads))


def test_negative_seed_is_refused(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    with pytest.raises(ConfigError, match="seed must be 0 or more"):
        TrainingSet(dataset, dataset.train, AUGMENTATION, -1)
