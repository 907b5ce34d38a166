"""Published layouts beyond fundus photographs with a split: STARE, GlaS, ISBI 2012, Kvasir-SEG."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2ed2q.data import MaskRule, check_dataset, open_dataset
from d2ed2q.errors import DataError
from d2ed2q.recipes.tables import check_tables

RealData = Callable[[str], Path]


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _picture(height: int = 20, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([height, seed]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _mask(value: int = 255, height: int = 20, width: int = 24) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[5:9] = value
    return mask


@pytest.fixture
def stare(tmp_path: Path) -> Path:
    for part in ("stare-images", "labels-ah"):
        (tmp_path / part).mkdir()
    for number in (1, 139, 162, 324):
        header = b"\n24 20\n255\n"
        image, label = b"P6" + header + _picture(seed=number).tobytes(), b"P5" + header + _mask().tobytes()
        (tmp_path / "stare-images" / f"im{number:04d}.ppm.gz").write_bytes(gzip.compress(image))
        (tmp_path / "labels-ah" / f"im{number:04d}.ah.ppm.gz").write_bytes(gzip.compress(label))
    return tmp_path


@pytest.fixture
def glas(tmp_path: Path) -> Path:
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    cases = (("train_1", 1), ("train_2", 2), ("train_10", 2), ("testA_1", 2), ("testB_1", 3))
    for seed, (name, patient) in enumerate(cases):
        annotation = _mask(1)
        annotation[12:15, 3:9] = 2
        _save(tmp_path / f"{name}.bmp", _picture(seed=seed))
        _save(tmp_path / f"{name}_anno.bmp", annotation)
        rows.append(f"{name},{patient}, benign, healthy")
    (tmp_path / "Grade.csv").write_text("\r".join(rows) + "\r")
    return tmp_path


@pytest.fixture
def isbi(tmp_path: Path) -> Path:
    root = tmp_path / "ISBI-2012"
    for number in range(11):
        _save(root / "train" / "image" / f"{number}.png", _picture()[:, :, 0])
        _save(root / "train" / "label" / f"{number}.png", _mask())
    return root


def _kvasir(root: Path, suffix: str = ".jpg") -> Path:
    for split in ("train", "validation", "test"):
        for number in range(2):
            _save(root / split / "images" / f"{number}.jpg", _picture())
            _save(root / split / "masks" / f"{number}{suffix}", _mask())
    return root


def test_stare(stare: Path) -> None:
    dataset = open_dataset(stare)
    assert dataset.name == "stare"
    assert [case.id for case in dataset.train] == ["im0001", "im0139"]
    assert [case.id for case in dataset.test] == ["im0162", "im0324"]
    assert (dataset.tubular, dataset.has_roi, dataset.channels) == (True, False, 3)
    assert "folds are recommended" in dataset.notes[0]
    sample = dataset.read(dataset.test[1])
    assert sample.label is not None
    assert int(sample.label.sum()) == 4 * 24
    assert check_dataset(stare).ok


def test_stare_unpacked_beside_packed_is_one_case_too_many(stare: Path) -> None:
    _save(stare / "stare-images" / "im0001.ppm", _picture())
    with pytest.raises(DataError, match="belong to the same case 'im0001'"):
        open_dataset(stare)


def test_stare_with_a_truncated_label(stare: Path) -> None:
    path = stare / "labels-ah" / "im0162.ah.ppm.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert check_dataset(stare).unreadable == (path,)


def test_glas_tells_objects_apart(glas: Path) -> None:
    dataset = open_dataset(glas)
    assert (dataset.name, dataset.classes, dataset.mask_rule) == ("glas", ("background", "gland"), MaskRule.OBJECTS)
    assert [case.id for case in dataset.train] == ["train_1", "train_2", "train_10"]
    assert [case.id for case in dataset.test] == ["testA_1"]
    sample = dataset.read(dataset.train[2])
    assert sample.label is not None
    assert sample.objects is not None
    assert sample.patient == "2"
    assert torch.unique(sample.objects).tolist() == [0, 1, 2]
    assert torch.equal(sample.label.bool(), sample.objects > 0)


def test_glas_says_that_patients_are_shared(glas: Path) -> None:
    (note,) = open_dataset(glas).notes
    assert "same patients in training and in test (2)" in note
    assert "folds by patient" in note
    report = check_dataset(glas)
    assert report.ok
    assert report.notes == (note,)
    assert check_tables(report)[-1] == f"note: {note}"


def test_the_second_part_of_glas_has_a_name_of_its_own(glas: Path) -> None:
    dataset = open_dataset(glas, "GlaS-B")
    assert (dataset.name, [case.id for case in dataset.test]) == ("glas_b", ["testB_1"])
    assert dataset.notes == ()
    for path in glas.glob("testB_*"):
        path.unlink()
    with pytest.raises(DataError, match="laid out in another way"):
        open_dataset(glas, "glas_b")


def test_glas_without_grades_takes_each_image_for_a_patient(glas: Path) -> None:
    (glas / "Grade.csv").unlink()
    dataset = open_dataset(glas)
    assert [case.patient for case in dataset.train] == ["train_1", "train_2", "train_10"]
    assert "Grade.csv is missing" in dataset.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,patient ID\rtrain_1,1\r", "Grade.csv has no row for image 'train_10'"),
        (b"image,person\rtrain_1,1\r", "has no columns name and patient ID"),
        (b"", "has no columns name and patient ID"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_grades_are_refused(glas: Path, content: bytes, message: str) -> None:
    (glas / "Grade.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_dataset(glas)


def test_glas_without_an_annotation_is_refused(glas: Path) -> None:
    (glas / "train_2_anno.bmp").unlink()
    with pytest.raises(DataError, match=r"train_2\.bmp has no mask"):
        open_dataset(glas)


def test_isbi_is_sorted_by_number(isbi: Path) -> None:
    dataset = open_dataset(isbi)
    assert (dataset.name, dataset.classes, dataset.channels) == ("isbi2012", ("membrane", "cell"), 1)
    assert [case.id for case in dataset.train] == [str(number) for number in range(11)]
    assert dataset.test == dataset.validation == ()
    assert any("use folds" in note for note in dataset.notes)
    assert any("neighbours resemble each other" in note for note in dataset.notes)


@pytest.mark.parametrize(("value", "message"), [(128, "values 128 where all are near"), (1, "multiply it by 255")])
def test_isbi_label_with_unknown_values_is_refused(isbi: Path, value: int, message: str) -> None:
    _save(isbi / "train" / "label" / "4.png", _mask(value))
    dataset = open_dataset(isbi)
    with pytest.raises(DataError, match=message):
        dataset.read(dataset.train[4])
    assert check_dataset(isbi).mask_violations == (isbi / "train" / "label" / "4.png",)


def test_folders_of_that_kind_under_another_name_are_not_taken_for_isbi(isbi: Path) -> None:
    own = isbi.rename(isbi.parent / "my_livers")
    with pytest.raises(DataError, match="laid out in another way"):
        open_dataset(own)
    assert open_dataset(own, "isbi2012").title == "ISBI 2012"


def test_isbi_label_of_another_shape_is_refused(isbi: Path) -> None:
    _save(isbi / "train" / "label" / "4.png", _mask(255, 24, 20))
    dataset = open_dataset(isbi)
    with pytest.raises(DataError, match=r"4\.png is 20×24 pixels, but its image"):
        dataset.read(dataset.train[4])


def test_kvasir_has_validation_images(tmp_path: Path) -> None:
    dataset = open_dataset(_kvasir(tmp_path / "Kvasir-SEG"))
    assert (dataset.name, dataset.classes) == ("kvasir_seg", ("background", "polyp"))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [2, 2, 2]
    assert len({case.id for case in dataset.cases}) == 6
    label = dataset.read(dataset.validation[0]).label
    assert label is not None
    assert bool(label[6:8].all())
    assert not bool(label[12:].any())
    assert [pair.split for pair in check_dataset(dataset.root).pairs][2:4] == ["validation"] * 2


def test_ones_own_splits_are_not_taken_for_kvasir(tmp_path: Path) -> None:
    root = _kvasir(tmp_path / "mine")
    assert open_dataset(root).name == "folder"
    assert open_dataset(root, "kvasir-seg").classes == ("background", "polyp")
    assert open_dataset(_kvasir(tmp_path / "kvasir_png", ".png")).name == "folder"


def test_kvasir_before_it_was_split_is_a_plain_folder(tmp_path: Path) -> None:
    _save(tmp_path / "Kvasir-SEG" / "images" / "a.jpg", _picture())
    _save(tmp_path / "Kvasir-SEG" / "masks" / "a.jpg", _mask())
    assert open_dataset(tmp_path / "Kvasir-SEG").name == "folder"


def test_real_glas(real_data: RealData) -> None:
    dataset = open_dataset(real_data("GlaS"))
    assert dataset.name == "glas"
    assert len(dataset.train) <= 85
    assert len(dataset.test) <= 60
    assert {case.patient for case in dataset.train} & {case.patient for case in dataset.test}
    assert any("same patients" in note for note in dataset.notes)
    if len(dataset.train) == 24:  # a part of the set, and the first of its images
        assert {case.patient for case in dataset.train} <= {str(number) for number in range(1, 17)}
        counts = [_objects(dataset.read(case).objects) for case in (*dataset.train, *dataset.test)]
        assert (sum(counts[:24]), sum(counts[24:])) == (233, 120)
    sample = dataset.read(dataset.train[0])
    assert sample.image.shape == (3, 522, 775)
    assert sample.label is not None
    assert float(sample.label.float().mean()) == pytest.approx(0.427, abs=0.001)
    second = open_dataset(real_data("GlaS"), "glas_b")
    assert second.train == dataset.train
    assert second.test
    assert not {case.id for case in second.test} & {case.id for case in dataset.test}


def _objects(objects: torch.Tensor | None) -> int:
    assert objects is not None
    return len(torch.unique(objects)) - 1


def test_real_isbi2012(real_data: RealData) -> None:
    dataset = open_dataset(real_data("ISBI2012"))
    assert dataset.name == "isbi2012"
    assert [int(case.id) for case in dataset.train] == list(range(30))
    samples = [dataset.read(case) for case in dataset.train]
    assert all(sample.image.shape == (1, 512, 512) for sample in samples)
    shares = [float(sample.label.float().mean()) for sample in samples if sample.label is not None]
    assert sum(shares) / 30 == pytest.approx(0.78, abs=0.005)


def test_real_kvasir_seg(real_data: RealData) -> None:
    dataset = open_dataset(real_data("Kvasir-SEG"))
    assert dataset.name == "kvasir_seg"
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [800, 100, 100]
    assert len({case.patient for case in dataset.cases}) == 1000
    sample = dataset.read(dataset.validation[7])
    assert sample.image.shape == (3, 352, 352)
    assert sample.label is not None
    assert 0 < float(sample.label.float().mean()) < 0.9


@pytest.mark.parametrize("name", ["GlaS", "ISBI2012"])
def test_real_sets_have_no_problems(real_data: RealData, name: str) -> None:
    report = check_dataset(real_data(name))
    assert report.problems == ()
    assert report.notes
