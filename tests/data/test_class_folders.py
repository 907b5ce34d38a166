"""Masks in a sub-folder for each class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.data import check_dataset, open_dataset
from d2ed2q.errors import DataError

CLASSES = {"cup": slice(0, 6), "disc": slice(6, 14), "angle": slice(14, 15)}


def _write(root: Path, names: str = "abc") -> Path:
    for row, name in enumerate(names):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 40 * row, np.uint8)).save(root / "images" / f"{name}.png")
        for folder, rows in CLASSES.items():
            mask = np.zeros((20, 24), np.uint8)
            mask[rows] = 255
            (root / "masks" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / folder / f"{name}.png")
    return root


def test_classes_come_in_alphabetical_order(tmp_path: Path) -> None:
    dataset = open_dataset(_write(tmp_path))
    assert (dataset.name, dataset.classes) == ("folder", ("background", "angle", "cup", "disc"))
    case = dataset.train[0]
    assert (case.label, case.labelled) == (None, True)
    assert [path.parent.name for path in case.class_masks] == ["angle", "cup", "disc"]
    label = dataset.read(case).label
    assert label is not None
    assert label[:, 0].tolist() == [2] * 6 + [3] * 8 + [1] + [0] * 5
    report = check_dataset(tmp_path)
    assert report.ok
    assert main(["data", "check", str(tmp_path), "--json"]) == 0
    assert all(pair.label_size == (20, 24) for pair in report.pairs)


def test_classes_come_in_the_order_of_a_list(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "classes.txt").write_text("disc\ncup\n\nangle\n")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("background", "disc", "cup", "angle")
    label = dataset.read(dataset.train[1]).label
    assert label is not None
    assert torch.equal(torch.unique(label[:, 3]), torch.arange(4))
    assert label[0, 0] == 2


@pytest.mark.parametrize("text", ["disc\ncup\n", "disc\ncup\nangle\niris\n", "cup\ncup\nangle\ndisc\n", ""])
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    _write(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=r"classes\.txt lists .*, but .*masks has angle, cup, disc"):
        open_dataset(tmp_path)


def test_all_splits_have_the_same_classes(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        _write(tmp_path / split)
    dataset = open_dataset(tmp_path)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [3, 3, 3]
    assert len({case.id for case in dataset.cases}) == 9
    assert dataset.read(dataset.test[0]).label is not None
    (tmp_path / "test" / "masks" / "cup").rename(tmp_path / "test" / "masks" / "mug")
    problems = check_dataset(tmp_path).problems
    assert any("masks has no folder 'cup'" in problem for problem in problems)
    assert any("masks has a folder 'mug'" in problem for problem in problems)
    shutil.rmtree(tmp_path / "test" / "masks")
    assert not any(case.labelled for case in open_dataset(tmp_path).test)


def test_a_missing_class_is_not_taken_for_an_absent_one(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "masks" / "cup" / "b.png").unlink()
    with pytest.raises(DataError, match=r"images/b\.png has masks of other classes, but none in .*cup; add one"):
        open_dataset(tmp_path)
    assert len(check_dataset(tmp_path).problems) == 1


def test_an_image_without_any_mask_and_a_mask_without_image(tmp_path: Path) -> None:
    _write(tmp_path)
    for name in CLASSES:
        (tmp_path / "masks" / name / "b.png").rename(tmp_path / "masks" / name / "x.png")
    report = check_dataset(tmp_path)
    assert {path.name for path in report.orphans} == {"b.png", "x.png"}
    assert len(report.problems) == 2


def test_pixels_in_two_classes_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    mask = np.zeros((20, 24), np.uint8)
    mask[5:9] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "disc" / "c.png")
    dataset = open_dataset(tmp_path)
    message = r"24 pixels of .*images/c\.png are in the class 'cup' and in the class 'disc'"
    with pytest.raises(DataError, match=message):
        dataset.read(dataset.train[2])
    (problem,) = check_dataset(tmp_path).problems
    assert "in the class 'cup' and in the class 'disc'" in problem


def test_bad_class_masks_are_named(tmp_path: Path) -> None:
    _write(tmp_path)
    cup = tmp_path / "masks" / "cup"
    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(cup / "a.png")
    Image.fromarray(np.zeros((24, 20), np.uint8)).save(cup / "b.png")
    (cup / "c.png").write_bytes(b"no picture")
    report = check_dataset(tmp_path)
    assert cup / "a.png" in report.mask_violations
    assert report.size_mismatches == (cup / "b.png",)
    assert report.unreadable == (cup / "c.png",)
    dataset = open_dataset(tmp_path)
    for case, message in zip(dataset.train, ("has values 7", "is 20×24 pixels", "not an image"), strict=True):
        with pytest.raises(DataError, match=message):
            dataset.read(case)


def test_masks_that_are_all_background_are_a_problem(tmp_path: Path) -> None:
    _write(tmp_path, "a")
    for name in CLASSES:
        Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "masks" / name / "a.png")
    assert check_dataset(tmp_path).problems == ("all 3 training masks are background only; correct the masks",)


def test_a_class_that_no_training_image_shows_is_a_problem(tmp_path: Path) -> None:
    _write(tmp_path)
    for name in "abc":
        Image.fromarray(np.zeros((20, 24), np.uint8)).save(tmp_path / "masks" / "cup" / f"{name}.png")
    (problem,) = check_dataset(tmp_path).problems
    assert problem.startswith("the class 'cup' never occurs in the 3 training images")


def test_loose_masks_beside_classes_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    shutil.copy(tmp_path / "masks" / "cup" / "a.png", tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks/a\.png is in none of the folders of classes"):
        open_dataset(tmp_path)


def test_an_empty_folder_beside_plain_masks_means_nothing(tmp_path: Path) -> None:
    _write(tmp_path)
    for name in CLASSES:
        for path in (tmp_path / "masks" / name).iterdir():
            path.replace(tmp_path / "masks" / path.name)
    assert open_dataset(tmp_path).classes == ("background", "foreground")
