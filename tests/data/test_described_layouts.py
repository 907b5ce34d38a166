"""The layouts with a dataset.json: the Decathlon's and nnU-Net's, in two and three dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.nifti import SHAPE, describe, label, scan, write, write_decathlon, write_nnunet

from d2ed2q.data import TrainingAugmentation, TrainingSet, check_dataset, open_dataset
from d2ed2q.errors import DataError
from d2ed2q.recipes.console import show
from d2ed2q.recipes.tables import check_tables


def distinct(values: torch.Tensor | None) -> list[int]:
    assert values is not None
    return sorted(set(values.flatten().tolist()))


def test_the_decathlon_opens(tmp_path: Path) -> None:
    write(tmp_path / "imagesTs" / "case_9.nii.gz", scan(9))
    root = write_decathlon(tmp_path, test=["./imagesTs/case_9.nii.gz", "./imagesTs/case_10.nii.gz"])
    dataset = open_dataset(root)
    assert (dataset.name, dataset.title) == ("decathlon", "decathlon")
    assert dataset.classes == ("background", "front", "back")
    assert (dataset.dims, dataset.channels, dataset.intensity.rule) == (3, 1, "percentile")
    assert [case.id for case in dataset.train] == ["case_0", "case_1", "case_2", "case_3"]
    assert [case.id for case in dataset.test] == ["case_9"]
    sample = dataset.read(dataset.train[0])
    assert sample.image.shape == (1, *SHAPE[::-1])
    assert sample.spacing == (3.0, 2.0, 1.0)
    assert sample.label is not None
    assert sample.label.dtype == torch.int64
    assert (float(sample.image.min()), float(sample.image.max())) == (0, 1)
    assert check_dataset(root).ok


def test_the_real_hippocampus(real_data: Callable[[str], Path]) -> None:
    dataset = open_dataset(real_data("Task04_Hippocampus"))
    assert dataset.title == "Hippocampus"
    assert len(dataset.train) == 260
    assert dataset.classes == ("background", "Anterior", "Posterior")
    for case in dataset.train[::65]:
        sample = dataset.read(case)
        assert sample.label is not None
        assert distinct(sample.label) == [0, 1, 2]
        assert all(20 < extent < 70 for extent in sample.label.shape)
        assert sample.spacing == (1.0, 1.0, 1.0)


def test_ct_is_seen_through_the_window_of_its_foreground(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, modality="CT")
    values = scan(0)
    inside = label() > 0
    values[inside] = np.linspace(50, 150, inside.sum()).astype(np.int16)
    for number in range(4):
        write(root / "imagesTr" / f"case_{number}.nii.gz", values)
    intensity = open_dataset(root).intensity
    assert intensity.rule == "window"
    assert intensity.low == pytest.approx((50.5,), abs=1)
    assert intensity.high == pytest.approx((149.5,), abs=1)


def test_a_ct_whose_label_does_not_fit_is_one_error(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, modality="CT")
    write(root / "labelsTr" / "case_0.nii.gz", label(shape=(9, 11, 8)))
    with pytest.raises(DataError, match="9×11×8 voxels, but its image"):
        open_dataset(root)


def test_names_come_from_the_description_and_so_does_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_decathlon(tmp_path)
    values = label()
    values[0, 0, 0] = 3
    wrong = write(root / "labelsTr" / "case_2.nii.gz", values)
    report = check_dataset(root)
    assert report.mask_violations == (wrong,)
    assert "value 3, more than 3 classes allow" in report.problems[0]
    show(*check_tables(report))
    assert "9×11×7" in capsys.readouterr().out
    with pytest.raises(DataError, match="value 3"):
        open_dataset(root).read(open_dataset(root).train[2])


def test_everything_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, n=9)
    images, labels = root / "imagesTr", root / "labelsTr"
    write(labels / "case_0.nii.gz", label(shape=(9, 11, 8)))
    write(labels / "case_1.nii.gz", label(), np.diag((1.0, 2.0, 4.0, 1.0)))
    write(labels / "case_2.nii.gz", label(), np.diag((1.0, 2.0, 3.0, 1.0)) + np.eye(4, k=3) * 9)
    write(labels / "case_3.nii.gz", label() + np.float32(0.5))
    (images / "case_4.nii.gz").write_bytes((images / "case_4.nii.gz").read_bytes()[:300])
    write(images / "case_5.nii.gz", np.stack([scan(1), scan(2)], axis=-1))
    (labels / "case_6.nii.gz").unlink()
    write(images / "case_7.nii.gz", scan(shape=(9, 11, 1)))
    write(labels / "case_7.nii.gz", label(shape=(9, 11, 7))[..., 3:4])
    report = check_dataset(root)
    assert report.size_mismatches == tuple(labels / f"case_{number}.nii.gz" for number in (0, 1, 2))
    assert set(report.unreadable) == {labels / "case_3.nii.gz", images / "case_4.nii.gz", labels / "case_6.nii.gz"}
    text = "\n".join(report.problems)
    for words in (
        "9×11×8 voxels",
        "1×2×4 mm",
        "elsewhere in space",
        "holds fractions",
        "case_4.nii.gz is",
        "different numbers of channels: 1",
        "case_6.nii.gz is missing",
        "single slices",
    ):
        assert words in text
    sizes = {pair.case.id: (pair.image_size, pair.label_size) for pair in report.pairs}
    assert sizes["case_0"] == ((7, 11, 9), (8, 11, 9))
    assert sizes["case_4"] == (None, (7, 11, 9))
    assert sizes["case_7"] == ((11, 9), (11, 9))


def test_a_class_that_never_occurs(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, labels={"0": "background", "1": "front", "2": "back", "3": "nowhere"})
    (problem,) = check_dataset(root).problems
    assert "class 'nowhere' never occurs in the 4 training images" in problem
    dataset = open_dataset(root)
    with pytest.raises(DataError, match="'nowhere' never occurs"):
        TrainingSet(dataset, dataset.train, TrainingAugmentation(crop=(8, 8, 8)), 0)


def test_patients_keep_their_images_together(tmp_path: Path) -> None:
    for root in (write_decathlon(tmp_path / "one"), write_nnunet(tmp_path / "two", n=4)):
        rows = ["id,patient", *(f"case_{number},anna" for number in range(2)), "case_2,bert", "case_3,carl"]
        (root / "patients.csv").write_text("\n".join(rows))
        assert [case.patient for case in open_dataset(root).train] == ["anna", "anna", "bert", "carl"]
        (root / "patients.csv").write_text("\n".join(rows[:-1]))
        with pytest.raises(DataError, match="no row for image 'case_3'"):
            open_dataset(root)


def test_nnunet_opens_with_a_file_for_each_channel(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path)
    for number in (7, 8):
        for channel in range(2):
            write(root / "imagesTs" / f"case_{number}_{channel:04d}.nii.gz", scan(10 * number + channel))
    write(root / "labelsTs" / "case_8.nii.gz", label())
    (root / "labelsTr" / "._case_0.nii.gz").write_bytes(b"left by another system")
    dataset = open_dataset(root)
    assert dataset.name == "nnunet"
    assert (dataset.dims, dataset.channels) == (3, 2)
    assert [(case.id, case.labelled) for case in dataset.test] == [("case_7", False), ("case_8", True)]
    image = dataset.read(dataset.train[1]).image
    for channel in range(2):
        values = scan(10 + channel).astype(np.float32)
        low, high = np.percentile(values, (0.5, 99.5))
        assert np.allclose(image[channel].numpy().T, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    assert check_dataset(root).ok


def test_nnunet_lacks_a_channel_or_a_label(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path)
    (root / "imagesTr" / "case_1_0001.nii.gz").unlink()
    (root / "labelsTr" / "case_2.nii.gz").unlink()
    write(root / "labelsTr" / "case_5.nii.gz", label())
    report = check_dataset(root)
    assert len(report.problems) == 3
    assert set(report.orphans) == {root / "imagesTr" / "case_2_0000.nii.gz", root / "labelsTr" / "case_5.nii.gz"}
    with pytest.raises(DataError, match=r"case_1_0001.nii.gz is missing: each image has 2 channels \(T0, T1\)"):
        open_dataset(root)


def test_channels_on_different_grids(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path)
    moved = write(root / "imagesTr" / "case_1_0001.nii.gz", scan(), np.diag((1.0, 2.0, 3.5, 1.0)))
    assert check_dataset(root).size_mismatches == (moved,)
    dataset = open_dataset(root)
    with pytest.raises(DataError, match=r"1×2×3.5 mm"):
        dataset.read(dataset.train[1])


def test_what_nnunet_ignores_is_outside_the_region_of_interest(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, labels={"background": 0, "front": 1, "back": 2, "ignore": 3})
    values = label()
    values[:, :, -2:] = 3
    write(root / "labelsTr" / "case_1.nii.gz", values)
    dataset = open_dataset(root)
    assert dataset.classes == ("background", "front", "back")
    sample = dataset.read(dataset.train[1])
    assert sample.roi is not None
    assert sample.label is not None
    assert torch.equal(sample.roi, torch.from_numpy(values.T != 3))
    assert sample.label.max() == 2
    assert check_dataset(root).ok
    write(root / "labelsTr" / "case_1.nii.gz", np.full(SHAPE, 3, np.uint8))
    assert "ignores every pixel" in check_dataset(root).problems[0]
    with pytest.raises(DataError, match="ignores every pixel"):
        dataset.read(dataset.train[1])


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("ending", "dtype", "channels", "rule"),
    [(".png", "u1", 1, "byte"), (".png", "u1", 3, "byte"), (".tif", "u2", 1, "percentile")],
)
def test_nnunet_in_two_dimensions(ending: str, dtype: str, channels: int, rule: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(3):
        values = rng.integers(0, np.iinfo(dtype).max, (20, 24, channels)).astype(dtype)
        pictures.append(values)
        _save(tmp_path / "imagesTr" / f"p{number}_0000{ending}", values if channels == 3 else values[..., 0])
        _save(tmp_path / "labelsTr" / f"p{number}{ending}", label(shape=(20, 24, 6))[..., 2])
    names = {str(channel): name for channel, name in zip(range(channels), "RGB", strict=False)}
    describe(tmp_path, channel_names=names, labels={"background": 0, "a": 1, "b": 2}, file_ending=ending)
    dataset = open_dataset(tmp_path)
    assert (dataset.dims, dataset.channels, dataset.intensity.rule) == (2, channels, rule)
    sample = dataset.read(dataset.train[0])
    assert sample.spacing is None
    assert sample.label is not None
    assert distinct(sample.label) == [0, 1, 2]
    if rule == "byte":
        assert np.allclose(sample.image.permute(1, 2, 0), pictures[0] / 255, atol=1e-6)
    else:
        assert len(np.unique(sample.image.numpy())) > 256, "all 16 bits are read"
    assert check_dataset(tmp_path).ok
    describe(tmp_path, channel_names=names | {"3": "NIR"}, labels={"background": 0, "a": 1, "b": 2}, file_ending=ending)
    with pytest.raises(DataError, match=rf"p0_0000\{ending} has {channels} channels, but .*names {channels + 1} "):
        open_dataset(tmp_path)
    describe(tmp_path, channel_names=names, labels={"background": 0, "a": 1, "b": 2}, file_ending=ending)
    _save(tmp_path / "imagesTr" / f"p1_0000{ending}", np.zeros((21, 24), dtype))
    assert not check_dataset(tmp_path).ok


DAMAGES: list[tuple[dict[str, Any], str]] = [
    ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "'whole' is a region of several numbers"),
    ({"labels": {"background": 0, "front": 1, "back": 3}}, "without gaps"),
    ({"labels": {"background": 0}}, "without gaps"),
    ({"labels": {"front": 1, "back": 2}}, "without gaps"),
    ({"labels": {"background": 0, "front": "one"}}, "no name with one number"),
    ({"labels": {"background": 0, "front": 1, "back": 1}}, "without gaps"),
    ({"labels": ["background", "front"]}, "has no labels"),
    ({"labels": {"background": 0, "front": -1}}, "no name with one number"),
    ({"channel_names": {}}, "names no channels"),
    ({"channel_names": ["MR"]}, "names no channels"),
]


@pytest.mark.parametrize(("changes", "message"), DAMAGES)
def test_a_description_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = write_nnunet(tmp_path, **changes)
    for name in ("auto", "nnunet"):
        with pytest.raises(DataError, match=message):
            open_dataset(root, name)
    assert len(check_dataset(root).problems) == 1


def test_a_description_that_is_no_json(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path)
    for text in ("", "{", "[1, 2]", "null", "\x00"):
        (root / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json"):
            open_dataset(root)
    (root / "dataset.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(root)


def test_lists_that_hold_anything(tmp_path: Path) -> None:
    pair = {"image": "./imagesTr/case_0.nii.gz", "label": "./labelsTr/case_0.nii.gz"}
    root = write_decathlon(tmp_path, training=[pair, pair, 7, {"image": 3, "label": 4}, ["a", "b"]], test={"a": 1})
    problems = check_dataset(root).problems
    assert sum("no pair of image and label" in problem for problem in problems) == 3
    assert any("twice" in problem for problem in problems)
    root = write_decathlon(tmp_path, training=[])
    with pytest.raises(DataError, match="lists no training images"):
        open_dataset(root)


def test_an_image_for_training_and_for_test(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, test=["./imagesTr/case_1.nii.gz"])
    with pytest.raises(DataError, match="'case_1' is in training and in test"):
        open_dataset(root)


def test_the_first_nnunet_listed_its_images_too(tmp_path: Path) -> None:
    root = write_nnunet(tmp_path)
    content = json.loads((root / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    content["labels"] = {str(number): name for name, number in content["labels"].items()}
    listed = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in range(3)]
    describe(root, **{**content, "training": listed})
    dataset = open_dataset(root)
    assert (dataset.name, dataset.channels, dataset.classes[1]) == ("nnunet", 2, "front")


def test_a_plain_folder_of_volumes(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "images" / f"v{number}.nii.gz", scan(number))
        write(tmp_path / "masks" / f"v{number}.nii{'.gz' if number else ''}", label())
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.dims, dataset.intensity.rule) == ("folder", 3, "percentile")
    assert dataset.classes == ("background", "class_1", "class_2")
    assert dataset.read(dataset.train[0]).spacing == (3.0, 2.0, 1.0)
    assert check_dataset(tmp_path).ok
    for number in range(3):
        write(tmp_path / "masks" / f"v{number}.nii{'.gz' if number else ''}", (label() > 0) * np.uint8(255))
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("background", "foreground")
    assert distinct(dataset.read(dataset.train[0]).label) == [0, 1]


def test_volumes_among_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        _save(tmp_path / "images" / f"p{number}.png", rng.integers(0, 256, (9, 11), dtype=np.uint8))
        _save(tmp_path / "masks" / f"p{number}.png", (label()[..., 2] > 0) * np.uint8(255))
    write(tmp_path / "images" / "v.nii", scan(shape=(9, 11, 1)))
    write(tmp_path / "masks" / "v.nii", label()[..., 2:3] // 2)
    problems = "\n".join(check_dataset(tmp_path).problems)
    assert "different kinds: single slices" in problems
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match="volume among pictures"):
        dataset.read(dataset.train[3])
    write(tmp_path / "masks" / "p1.nii", label()[..., 2:3])
    (tmp_path / "masks" / "p1.png").unlink()
    assert any("a picture and a volume" in problem for problem in check_dataset(tmp_path).problems)
