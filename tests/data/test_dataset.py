"""Reading cases, splitting them and telling them apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2ed2q.data import Case, Dataset, checksums, open_dataset, read_image, split_validation
from d2ed2q.data.masks import MaskRule
from d2ed2q.errors import ConfigError, DataError

FolderMaker = Callable[..., Path]


def test_sample_holds_what_the_files_hold(phantoms: Path) -> None:
    dataset = open_dataset(phantoms)
    case = dataset.train[0]
    sample = dataset.read(case)
    assert sample.label is not None
    assert sample.roi is not None
    assert (sample.image.dtype, sample.label.dtype, sample.roi.dtype) == (torch.float32, torch.int64, torch.bool)
    assert (sample.image.shape, sample.label.shape, sample.roi.shape) == ((3, 96, 96), (96, 96), (96, 96))
    np.testing.assert_allclose(sample.image.permute(1, 2, 0).numpy(), read_image(case.image) / 255, atol=1e-7)
    assert set(sample.label.flatten().tolist()) == {0, 1}
    assert not sample.label[~sample.roi].any()
    assert (sample.id, sample.patient) == ("phantom_001", "phantom_001")
    assert dataset.has_roi


def test_mask_of_another_size_is_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    Image.new("L", (32, 23)).save(root / "masks" / "case_1.png")
    dataset = open_dataset(root)
    with pytest.raises(DataError, match=r"masks/case_1\.png is 32×23 pixels, but its image .*case_1\.png is 32×24"):
        dataset.read(dataset.train[1])


def test_image_of_other_channels_is_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    Image.new("L", (32, 24)).save(root / "images" / "case_2.png")
    dataset = open_dataset(root)
    with pytest.raises(DataError, match=r"case_2\.png has 1 channels where the dataset has 3"):
        dataset.read(dataset.train[2])


def test_empty_region_of_interest_is_refused(make_folder: FolderMaker) -> None:
    root = make_folder()
    (root / "roi").mkdir()
    for index in range(3):
        Image.new("L", (32, 24), 0 if index == 0 else 255).save(root / "roi" / f"case_{index}.png")
    dataset = open_dataset(root)
    assert dataset.read(dataset.train[1]).roi is not None
    with pytest.raises(DataError, match=r"region of interest .*case_0\.png is empty"):
        dataset.read(dataset.train[0])


def _cases(patients: list[str]) -> list[Case]:
    return [Case(str(index), Path(str(index)), None, None, patient) for index, patient in enumerate(patients)]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_split_keeps_patients_whole_and_loses_nothing(patients: list[str], fraction: float, seed: int) -> None:
    cases = _cases(patients)
    if len(set(patients)) < 2:
        with pytest.raises(DataError, match="add images of others"):
            split_validation(cases, fraction, seed)
        return
    training, validation = split_validation(cases, fraction, seed)
    assert sorted((*training, *validation), key=lambda case: int(case.id)) == cases
    apart = {case.patient for case in training}, {case.patient for case in validation}
    assert not apart[0] & apart[1]
    assert all(apart)
    assert abs(len(apart[1]) - fraction * len(set(patients))) <= 1
    assert split_validation(cases, fraction, seed) == (training, validation)


def test_split_depends_on_the_seed() -> None:
    cases = _cases([str(index) for index in range(20)])
    assert len({split_validation(cases, 0.2, seed)[1] for seed in range(10)}) > 5


@pytest.mark.parametrize(("fraction", "seed"), [(0.0, 0), (1.0, 0), (0.2, -1)])
def test_split_refuses_what_is_out_of_range(fraction: float, seed: int) -> None:
    with pytest.raises(ConfigError, match="must"):
        split_validation(_cases(["a", "b"]), fraction, seed)


def test_checksums_see_every_file_of_a_case(phantoms: Path) -> None:
    case = open_dataset(phantoms).train[0]
    other = open_dataset(phantoms).train[1]
    digest = checksums([case])[case.id]
    assert len(digest) == 64
    assert checksums([dataclasses.replace(case, id="x")])["x"] == digest
    for change in ({"image": other.image}, {"label": other.label}, {"roi": None}, {"label": None}):
        assert checksums([dataclasses.replace(case, **change)])[case.id] != digest


def test_checksums_name_a_missing_file() -> None:
    with pytest.raises(DataError, match="cannot read gone"):
        checksums([Case("a", Path("gone"), None, None, "a")])


def test_more_classes_than_a_byte_holds_are_refused(tmp_path: Path) -> None:
    names = ("background", *(f"class {number}" for number in range(1, 257)))
    with pytest.raises(DataError, match="has 257 classes, and labels hold 256 at most"):
        Dataset("folder", tmp_path, names, 3, (), (), MaskRule.CLASSES, tubular=False)
