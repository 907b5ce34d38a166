"""Checking a folder: every problem is found, and none stops the search."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.data import check_dataset
from d2ed2q.errors import ConfigError

FolderMaker = Callable[..., Path]


def test_good_dataset(phantoms: Path) -> None:
    report = check_dataset(phantoms)
    assert report.ok
    assert report.problems == ()
    assert report.layout == "folder"
    assert [pair.split for pair in report.pairs] == ["train"] * 4 + ["test"] * 2
    assert all(pair.image_size == pair.label_size == (96, 96) for pair in report.pairs)


def test_all_problems_are_found_at_once(make_folder: FolderMaker) -> None:
    root = make_folder(n=8)
    images, masks = root / "images", root / "masks"
    (masks / "case_0.png").unlink()
    (images / "case_1.png").unlink()
    Image.new("L", (10, 12), 255).save(masks / "case_2.png")
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(masks / "case_3.png")
    (images / "case_4.png").write_bytes((images / "case_4.png").read_bytes()[:200])
    Image.new("L", (32, 24)).save(masks / "case_5.png")
    Image.new("L", (32, 24)).save(images / "case_6.png")
    report = check_dataset(root)
    assert not report.ok
    assert set(report.orphans) == {images / "case_0.png", masks / "case_1.png"}
    assert report.size_mismatches == (masks / "case_2.png",)
    assert report.mask_violations == (masks / "case_3.png",)
    assert report.unreadable == (images / "case_4.png",)
    assert report.empty_masks == (masks / "case_5.png",)
    assert any("1 of 6 images are grey" in problem and "case_6.png" in problem for problem in report.problems)
    assert len(report.problems) == 6  # a single empty mask is no problem
    sizes = {pair.case.id: (pair.image_size, pair.label_size) for pair in report.pairs}
    assert sizes["case_2"] == ((24, 32), (12, 10))
    assert sizes["case_4"] == (None, (24, 32))
    assert sizes["case_0"] == ((24, 32), None)


def test_the_same_picture_under_two_names_is_a_problem(make_folder: FolderMaker) -> None:
    root = make_folder()
    shutil.copy(root / "images" / "case_0.png", root / "images" / "case_2.png")
    (problem,) = check_dataset(root).problems
    assert problem.startswith(f"{root}/images/case_2.png is the same picture as {root}/images/case_0.png")
    (root / "patients.csv").write_text("id,patient\ncase_0,a\ncase_1,b\ncase_2,a\n")
    assert check_dataset(root).ok, "they stay together"
    make_folder(part="test", n=1)
    (root / "test" / "images" / "case_0.png").rename(root / "test" / "images" / "case_9.png")
    (root / "test" / "masks" / "case_0.png").rename(root / "test" / "masks" / "case_9.png")
    (root / "patients.csv").unlink()
    shutil.copy(root / "images" / "case_1.png", root / "images" / "case_2.png")
    shutil.copy(root / "images" / "case_1.png", root / "test" / "images" / "case_9.png")
    assert len(check_dataset(root).problems) == 2


def test_regions_of_training_images_alone_are_noted(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    assert not check_dataset(tmp_path / "data").notes
    shutil.rmtree(tmp_path / "data" / "test" / "roi")
    (note,) = check_dataset(tmp_path / "data").notes
    assert note.startswith("training images have regions of interest and test images have none")


def test_all_background_masks(make_folder: FolderMaker) -> None:
    report = check_dataset(make_folder([np.zeros((24, 32), np.uint8)] * 3))
    assert len(report.empty_masks) == 3
    assert report.problems == ("all 3 training masks are background only; correct the masks",)


def test_a_class_that_only_a_test_image_shows_is_a_problem(make_folder: FolderMaker) -> None:
    make_folder([np.eye(24, 32, dtype=np.uint8)] * 3)
    root = make_folder([np.eye(24, 32, dtype=np.uint8) * 2], part="test")
    (problem,) = check_dataset(root).problems
    assert problem.startswith("the class 'class_2' never occurs")


def test_deep_pictures_are_a_problem_with_a_list_of_classes_too(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "classes.txt").write_text("vessel\n")
    assert check_dataset(root).ok
    for path in (root / "images").iterdir():
        Image.fromarray(np.full((24, 32), 9000, np.uint16)).save(path)
    assert "16 bits a channel" in check_dataset(root).problems[0]


def test_regions_are_checked_too(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "roi").mkdir()
    for index, (size, value) in enumerate((((32, 24), 0), ((32, 24), 90), ((9, 9), 255))):
        Image.new("L", size, value).save(root / "roi" / f"case_{index}.png")
    report = check_dataset(root)
    assert report.mask_violations == (root / "roi" / "case_1.png",)
    assert report.size_mismatches == (root / "roi" / "case_2.png",)
    assert any("case_0.png is empty" in problem for problem in report.problems)
    assert len(report.problems) == 3


def test_missing_folder_is_a_problem(tmp_path: Path) -> None:
    report = check_dataset(tmp_path / "nowhere")
    assert (report.ok, report.layout, report.pairs) == (False, None, ())
    assert "no dataset folder" in report.problems[0]


def test_folder_without_masks_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    report = check_dataset(tmp_path)
    assert "laid out in another way" in report.problems[0]


def test_unknown_layout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dataset"):
        check_dataset(tmp_path, "drivv")


@pytest.mark.parametrize("name", ["DRIVE", "CHASE_DB1"])
def test_real_datasets_have_no_problems(real_data: Callable[[str], Path], name: str) -> None:
    report = check_dataset(real_data(name))
    assert report.problems == ()
    assert report.layout == name.lower()
    assert not report.empty_masks
