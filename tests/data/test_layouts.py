"""The dataset layouts, well-formed and ill-formed, made up and real."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.data import MaskRule, check_dataset, open_dataset
from d2ed2q.data.datasets.folder import find_classes
from d2ed2q.errors import ConfigError, DataError

FolderMaker = Callable[..., Path]


def _picture(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((20, 24), dtype=np.uint8)
    mask[5:9] = 255
    array = {"image": np.full((20, 24, 3), 90, np.uint8), "mask": mask, "roi": np.full((20, 24), 255, np.uint8)}[kind]
    Image.fromarray(array).save(path)


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    for split, numbers in (("training", (21, 22, 23)), ("test", (1, 2))):
        for number in numbers:
            _picture(tmp_path / split / "images" / f"{number:02d}_{split}.tif", "image")
            _picture(tmp_path / split / "1st_manual" / f"{number:02d}_manual1.gif", "mask")
            _picture(tmp_path / split / "mask" / f"{number:02d}_{split}_mask.gif", "roi")
    return tmp_path


@pytest.fixture
def chase(tmp_path: Path) -> Path:
    for child in (1, 2, 10, 11, 14):
        for eye in "LR":
            _picture(tmp_path / f"Image_{child:02d}{eye}.jpg", "image")
            _picture(tmp_path / f"Image_{child:02d}{eye}_1stHO.png", "mask")
            _picture(tmp_path / f"Image_{child:02d}{eye}_2ndHO.png", "mask")
    return tmp_path


def test_drive(drive: Path) -> None:
    dataset = open_dataset(drive)
    assert dataset.name == "drive"
    assert [case.id for case in dataset.train] == ["21", "22", "23"]
    assert [case.patient for case in dataset.test] == ["01", "02"]
    assert dataset.classes == ("background", "vessel")
    assert (dataset.channels, dataset.tubular, dataset.mask_rule) == (3, True, MaskRule.THRESHOLD)
    sample = dataset.read(dataset.test[0])
    assert sample.label is not None
    assert sample.roi is not None
    assert int(sample.label.sum()) == 4 * 24
    assert bool(sample.roi.all())


def test_drive_without_test_labels(drive: Path) -> None:
    shutil.rmtree(drive / "test" / "1st_manual")
    dataset = open_dataset(drive)
    assert [case.label for case in dataset.test] == [None, None]
    assert dataset.read(dataset.test[0]).label is None


def test_drive_without_test_images(drive: Path) -> None:
    shutil.rmtree(drive / "test")
    assert open_dataset(drive).test == ()


def test_drive_without_fields_of_view_is_refused(drive: Path) -> None:
    shutil.rmtree(drive / "training" / "mask")
    with pytest.raises(DataError, match=r"no folder .*training/mask of fields of view"):
        open_dataset(drive)


def test_drive_image_without_mask_is_refused(drive: Path) -> None:
    (drive / "training" / "1st_manual" / "22_manual1.gif").unlink()
    with pytest.raises(DataError, match=r"22_training\.tif has no mask"):
        open_dataset(drive)


def test_chase_keeps_both_eyes_of_a_child_together(chase: Path) -> None:
    dataset = open_dataset(chase)
    assert dataset.name == "chase_db1"
    assert {case.patient for case in dataset.train} == {"01", "02", "10"}
    assert {case.patient for case in dataset.test} == {"11", "14"}
    assert len(dataset.train) == 6
    assert not dataset.has_roi
    assert all(case.label is not None and case.label.name == f"{case.id}_1stHO.png" for case in dataset.train)


def test_chase_with_regions(chase: Path) -> None:
    for path in chase.glob("Image_*.jpg"):
        _picture(chase / "mask" / f"{path.stem}.gif", "roi")
    dataset = open_dataset(chase, "chase-db1")
    assert all(case.roi is not None and case.roi.stem == case.id for case in (*dataset.train, *dataset.test))
    (chase / "mask" / "Image_02L.gif").unlink()
    with pytest.raises(DataError, match=r"Image_02L\.jpg has no region of interest"):
        open_dataset(chase)


@pytest.mark.parametrize("name", ["auto", "folder", "Folder", "FOLDER"])
def test_plain_folder(make_folder: FolderMaker, name: str) -> None:
    dataset = open_dataset(make_folder(), name)
    assert dataset.name == "folder"
    assert [case.id for case in dataset.train] == ["case_0", "case_1", "case_2"]
    assert dataset.test == ()
    assert dataset.classes == ("background", "foreground")
    assert not dataset.has_roi


@pytest.mark.parametrize("part", ["train", "training"])
def test_folder_with_splits(make_folder: FolderMaker, part: str) -> None:
    make_folder(part=part)
    make_folder(part="val", n=1)
    root = make_folder(part="test", n=2)
    dataset = open_dataset(root)
    assert [case.id for case in dataset.train] == ["case_0", "case_1", "case_2"]
    assert [case.id for case in dataset.validation] == ["val_case_0"]
    assert [case.id for case in dataset.test] == ["test_case_0", "test_case_1"]
    assert [case.patient for case in dataset.test] == ["test_case_0", "test_case_1"]


def test_folder_with_unlabelled_test_images(make_folder: FolderMaker) -> None:
    make_folder()
    root = make_folder(part="test", n=2)
    shutil.rmtree(root / "test" / "masks")
    assert [case.label for case in open_dataset(root).test] == [None, None]


def test_folder_with_patients(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "patients.csv").write_text("id,patient\ncase_0,A\ncase_1, A \ncase_2,B\ncase_2,B\n")
    assert [case.patient for case in open_dataset(root).train] == ["A", "A", "B"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,patient\ncase_0,A\ncase_1,A\n", "no row for image 'case_2'"),
        ("image,person\ncase_0,A\n", "row without id or patient"),
        ("id,patient\ncase_0, \n", "row without id or patient"),
        ("id,patient\ncase_0,A\ncase_1,A\ncase_2,B\ncase_1,B\n", "gives image 'case_1' to 'A' and to 'B'"),
    ],
)
def test_bad_list_of_patients_is_refused(make_folder: FolderMaker, table: str, message: str) -> None:
    root = make_folder()
    (root / "patients.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


def test_patient_in_training_and_test_is_refused(make_folder: FolderMaker) -> None:
    make_folder()
    root = make_folder(part="test", n=1)
    (root / "patients.csv").write_text("id,patient\ncase_0,A\ncase_1,B\ncase_2,C\n")
    with pytest.raises(DataError, match="patient 'A' is in training and in test"):
        open_dataset(root)


def test_patient_in_training_and_validation_is_refused(make_folder: FolderMaker) -> None:
    make_folder()
    root = make_folder(part="validation", n=1)
    (root / "patients.csv").write_text("id,patient\ncase_0,A\ncase_1,B\ncase_2,C\n")
    with pytest.raises(DataError, match="patient 'A' is in training and in validation"):
        open_dataset(root)


def test_a_mask_of_a_huge_number_is_named(make_folder: FolderMaker) -> None:
    problems = find_classes({Path("a.nii"): {0, 1}, Path("b.nii"): {0, 2**31 - 1}}).problems
    assert list(problems.values()) == ["the mask b.nii has value 2147483647; class numbers go up to 255"]


def test_folder_of_several_classes(make_folder: FolderMaker) -> None:
    masks = [np.full((24, 32), value, np.uint8) for value in (0, 2)]
    masks[0][3] = 1
    dataset = open_dataset(make_folder(masks))
    assert dataset.classes == ("background", "class_1", "class_2")
    assert dataset.mask_rule is MaskRule.CLASSES
    label = dataset.read(dataset.train[1]).label
    assert label is not None
    assert torch.equal(label, torch.full((24, 32), 2))


def test_classes_with_a_gap_are_refused(make_folder: FolderMaker) -> None:
    masks = [np.full((24, 32), value, np.uint8) for value in (0, 1, 3)]
    with pytest.raises(DataError, match=r"case_2\.png has value 3, but no mask has value 2"):
        open_dataset(make_folder(masks))


def test_mask_with_odd_values_among_binary_ones_is_refused(make_folder: FolderMaker) -> None:
    masks = [np.full((24, 32), value, np.uint8) for value in (255, 255, 128)]
    with pytest.raises(DataError, match=r"case_2\.png has values 128; a binary mask"):
        open_dataset(make_folder(masks))


def test_white_mask_among_class_numbers_is_refused(make_folder: FolderMaker) -> None:
    masks = [np.full((24, 32), value, np.uint8) for value in (1, 2, 255, 2)]
    with pytest.raises(DataError, match=r"case_2\.png has value 255 where the others have class numbers 0…2"):
        open_dataset(make_folder(masks))


def test_image_without_mask_is_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "masks" / "case_1.png").unlink()
    with pytest.raises(DataError, match=r"images/case_1\.png has no mask"):
        open_dataset(root)


def test_mask_without_image_is_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "images" / "case_1.png").unlink()
    with pytest.raises(DataError, match=r"masks/case_1\.png belongs to no image"):
        open_dataset(root)


def test_two_images_of_one_name_are_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    _picture(root / "images" / "case_1.bmp", "image")
    with pytest.raises(DataError, match="belong to the same case 'case_1'"):
        open_dataset(root)


def test_further_problems_are_counted(make_folder: FolderMaker) -> None:
    root = make_folder()
    for index in range(3):
        (root / "masks" / f"case_{index}.png").unlink()
    with pytest.raises(DataError, match=r"and 2 more; d2ed2q data check"):
        open_dataset(root)


def test_images_of_other_formats_and_dead_links_are_named(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "images" / "photo.webp").touch()
    (root / "images" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "images" / os.fsdecode(b"caf\xe9.png")).touch()
    problems = check_dataset(root).problems
    assert f"{root}/images/photo.webp is not read; save it as PNG, TIFF or NIfTI" in problems
    assert f"{root}/images/gone.png leads nowhere; fetch the file" in problems
    assert f"the name 'caf\\udce9.png' in {root}/images is not in UTF-8; rename the file" in problems
    with pytest.raises(DataError, match=r"leads nowhere; fetch the file"):
        open_dataset(root)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset folder .*nowhere; check the path$"):
        open_dataset(tmp_path / "nowhere")


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is empty; expected folder: images/ and masks/ .*; or drive: .*1st_manual"):
        open_dataset(tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="has no training images; the plain layout is"):
        open_dataset(tmp_path)


def test_folder_of_another_layout_is_refused(make_folder: FolderMaker) -> None:
    with pytest.raises(DataError, match=r"laid out in another way; expected drive"):
        open_dataset(make_folder(), "drive")


@pytest.mark.parametrize(
    ("name", "near"), [("drvie", "did you mean 'drive'"), ("chase", "'chase_db1'"), ("xyz", "known are auto, drive")]
)
def test_unknown_dataset_is_refused(tmp_path: Path, name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown dataset '{name}'; .*{near}"):
        open_dataset(tmp_path, name)


def test_real_drive(real_data: Callable[[str], Path]) -> None:
    dataset = open_dataset(real_data("DRIVE"))
    assert dataset.name == "drive"
    assert [int(case.id) for case in dataset.train] == list(range(21, 41))
    assert [int(case.id) for case in dataset.test] == list(range(1, 21))
    for case in (dataset.train[0], dataset.test[-1]):
        sample = dataset.read(case)
        assert sample.label is not None
        assert sample.roi is not None
        assert sample.image.shape == (3, 584, 565)
        assert 0.05 < float(sample.label[sample.roi].float().mean()) < 0.2
        assert 0.6 < float(sample.roi.float().mean()) < 0.8


def test_real_chase_db1(real_data: Callable[[str], Path]) -> None:
    dataset = open_dataset(real_data("CHASE_DB1"))
    assert dataset.name == "chase_db1"
    assert (len(dataset.train), len(dataset.test)) == (20, 8)
    assert not {case.patient for case in dataset.train} & {case.patient for case in dataset.test}
    sample = dataset.read(dataset.test[0])
    assert sample.label is not None
    assert sample.image.shape == (3, 960, 999)
    assert 0.03 < float(sample.label.float().mean()) < 0.15
    if sample.roi is not None:
        assert bool(sample.roi[480, 500])
        assert not bool(sample.roi[0, 0])
        assert float(sample.label[~sample.roi].float().mean()) < 0.001
