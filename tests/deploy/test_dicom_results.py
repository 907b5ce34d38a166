from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from d2ed2q.deploy import read_bundle
from d2ed2q.deploy.dicom_results import dicom_overlay, dicom_segmentation, encoded
from d2ed2q.errors import DataError

from ..data.dicom_files import CAPTURE, CT, DX, MR, OP8, US, as_bytes, make_dicom


def results_of(source: pydicom.Dataset, bundle: Path, tta: str | None = None) -> list[pydicom.Dataset]:
    """Segmentation and overlay of an image of 8×8 pixels that came as a file, read as somebody else would."""
    given, manifest = pydicom.dcmread(io.BytesIO(as_bytes(source))), read_bundle(bundle).manifest
    mask, probability = np.ones((8, 8), np.int64), np.ones((1, 8, 8), np.float32)
    made = (
        dicom_segmentation(given, mask, probability, manifest, "ab" * 32, tta=tta),
        dicom_overlay(given, np.zeros((8, 8, 3), np.uint8), manifest, "ab" * 32, tta),
    )
    return [pydicom.dcmread(io.BytesIO(encoded(one))) for one in made]


@pytest.mark.parametrize("kind", [CT, MR, US, DX, OP8])
def test_one_frame_may_be_said_to_be_one(kind: str, bundle: Path) -> None:
    source = make_dicom(np.zeros((8, 8), np.uint8), kind, NumberOfFrames=1)
    segmentation, overlay = (
        {str(element.value) for element in result.iterall() if element.keyword == "ReferencedSOPClassUID"}
        for result in results_of(source, bundle)
    )
    assert segmentation == {kind}
    assert overlay <= {kind}
    if kind in (CT, MR):
        (shared,) = results_of(source, bundle)[0].SharedFunctionalGroupsSequence
        assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.5, 0.5]


def test_a_part_of_something_is_not_taken_for_the_hippocampus(bundle: Path) -> None:
    manifest, mask = read_bundle(bundle).manifest, np.ones((8, 8), np.int64)
    for names, kinds in (
        (("background", "Anterior", "Posterior"), {"Hippocampus"}),
        (("background", "anterior chamber", "posterior"), {"Tissue"}),
        (("background", "polyp", "lesion"), {"Polyp", "Lesion"}),
    ):
        named = replace(manifest, output=replace(manifest.output, classes=names))
        probability = np.full((3, 8, 8), 1 / 3, np.float32)
        made = dicom_segmentation(make_dicom(np.zeros((8, 8), np.uint8), CT), mask, probability, named, "ab" * 32)
        assert {str(one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for one in made.SegmentSequence} == kinds


@pytest.mark.parametrize("kind", [OP8, CAPTURE])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("SOPInstanceUID", None), ("SeriesNumber", "x"), ("SeriesNumber", [1, 2]), ("PatientName", 3), ("StudyDate", {})],
)
def test_odd_headers_are_refused_and_not_raised(kind: str, keyword: str, value: object, bundle: Path) -> None:
    manifest, mask = read_bundle(bundle).manifest, np.ones((8, 8), np.int64)
    source = make_dicom(np.zeros((8, 8, 3), np.uint8), kind)
    if value is None:
        delattr(source, keyword)
    else:  # as a parser leaves what it cannot read
        source[keyword] = pydicom.DataElement(keyword, str(source[keyword].VR), None)
        source[keyword]._value = value
    made = 0
    makers: tuple[Callable[[], pydicom.Dataset], ...] = (
        lambda: dicom_overlay(source, np.zeros((8, 8, 3), np.uint8), manifest, "ab" * 32),
        lambda: dicom_segmentation(source, mask, np.ones((1, 8, 8), np.float32), manifest, "ab" * 32),
    )
    for make in makers:
        try:
            encoded(make())
            made += 1
        except DataError:  # and nothing else
            continue
    assert made < 2, "one of them at least needs it"


@pytest.mark.parametrize("kind", [OP8, CAPTURE])
def test_warning_and_checksum_are_whole_however_long_the_models_name_is(
    kind: str, bundle: Path, tmp_path: Path
) -> None:
    manifest = replace(read_bundle(bundle).manifest, name="a model with a name that goes on " * 40)
    source, sha256 = make_dicom(np.zeros((8, 8, 3), np.uint8), kind), hashlib.sha256(b"a model").hexdigest()
    mask, probability = np.ones((8, 8), np.int64), np.ones((1, 8, 8), np.float32)
    segmentation = dicom_segmentation(source, mask, probability, manifest, sha256)
    overlay = dicom_overlay(source, np.zeros((8, 8, 3), np.uint8), manifest, sha256)
    for made in (segmentation, overlay):
        found = pydicom.dcmread(io.BytesIO(encoded(made)))
        assert found.SeriesDescription.startswith("Research use only; not a medical device: ")
        assert len(found.SeriesDescription) <= 64
        assert found.SoftwareVersions == found.DeviceSerialNumber == sha256
        assert found.Manufacturer == "d2ed2q"
        if shutil.which("dciodvfy") is not None:
            (tmp_path / "made.dcm").write_bytes(encoded(made))
            said = subprocess.run(["dciodvfy", tmp_path / "made.dcm"], capture_output=True, text=True, check=False)
            assert not [line for line in said.stderr.splitlines() if line.startswith("Error")], said.stderr
    (segment,) = segmentation.SegmentSequence
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == sha256
    assert "Research use only" in overlay.DerivationDescription
    assert sha256 in overlay.DerivationDescription
    assert segmentation.SeriesDescription != overlay.SeriesDescription, "which is which can be seen"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, that some of these are not as they should be
@pytest.mark.parametrize("kind", [OP8, CT])
@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", ["ISO 2022 IR 6", "ISO 2022 IR 87"]),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", ["ISO 2022 IR 6", "ISO 2022 IR 149"]),
        ("ISO 2022 IR 87", "Doe^Jane", ["ISO 2022 IR 6", "ISO 2022 IR 87"]),
        (["ISO 2022 IR 100", "ISO 2022 IR 126"], "Dionysios=Διονυσιος", ["ISO 2022 IR 100", "ISO 2022 IR 126"]),
        ("ISO 2022 IR 100", "Äneas^Jörg", "ISO_IR 100"),
        ("ISO_IR 192", "Müller=王", "ISO_IR 192"),
        (["ISO_IR 192", "ISO 2022 IR 87"], "Müller=王", "ISO_IR 192"),
        (["ISO_IR 100", "ISO 2022 IR 87"], "Müller=山田", ["ISO 2022 IR 100", "ISO 2022 IR 87"]),
        ("GB18030", "Wang=王", "GB18030"),
        ("ISO_IR 6", "Doe^Jane", None),
        ("", "Doe^Jane", None),
    ],
)
def test_names_in_every_character_set_come_out_as_they_went_in(
    given: str | list[str], name: str, expected: str | list[str] | None, kind: str, bundle: Path
) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8) if kind == OP8 else np.zeros((8, 8), np.int16)
    for found in results_of(make_dicom(pixels, kind, SpecificCharacterSet=given, PatientName=name), bundle):
        assert str(found.PatientName) == name
        assert found.get("SpecificCharacterSet") == expected


@pytest.mark.parametrize("kind", [OP8, CAPTURE])
@pytest.mark.parametrize("value", [None, ""])
def test_what_may_be_empty_may_be_missing(value: str | None, kind: str, bundle: Path) -> None:
    keywords = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
    for found in results_of(make_dicom(np.zeros((8, 8, 3), np.uint8), kind, **dict.fromkeys(keywords, value)), bundle):
        assert {keyword: found.get(keyword, "absent") or "" for keyword in keywords} == dict.fromkeys(keywords, "")


def test_results_say_whose_number_and_which_zone_it_is(bundle: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    segmentation, overlay = results_of(
        make_dicom(picture, IssuerOfPatientID="CLINIC", TimezoneOffsetFromUTC="-0930"), bundle
    )
    for found in (segmentation, overlay):
        assert (found.IssuerOfPatientID, found.TimezoneOffsetFromUTC) == ("CLINIC", "-0930")
    there = datetime.now(timezone(-timedelta(hours=9, minutes=30))).replace(tzinfo=None)
    for kind in ("Content", "InstanceCreation"):
        said = segmentation[f"{kind}Date"].value + segmentation[f"{kind}Time"].value
        assert abs(datetime.strptime(said, "%Y%m%d%H%M%S.%f") - there) < timedelta(minutes=5)
    for found in results_of(make_dicom(picture, TimezoneOffsetFromUTC="+9999"), bundle):
        assert "TimezoneOffsetFromUTC" not in found, "it is none"


def test_another_augmentation_is_another_instance(bundle: Path) -> None:
    source, own = make_dicom(np.zeros((8, 8, 3), np.uint8)), read_bundle(bundle).manifest.output.tta
    other = "flips" if own != "flips" else "dihedral"
    usual, named, changed = (
        [str(found.SOPInstanceUID) for found in results_of(source, bundle, tta)] for tta in (None, own, other)
    )
    assert usual == named
    assert not set(usual) & set(changed)


def test_results_say_which_eye_it_is_and_which_way_up(bundle: Path) -> None:
    left = make_dicom(np.zeros((8, 8, 3), np.uint8), ImageLaterality="L", PatientOrientation=["L", "F"])
    segmentation, overlay = results_of(left, bundle)
    assert list(segmentation.PatientOrientation) == list(overlay.PatientOrientation) == ["L", "F"]
    assert (overlay.ImageLaterality, "Laterality" in overlay) == ("L", False), "the one is in place of the other"
    _, overlay = results_of(make_dicom(np.zeros((8, 8), np.uint8), DX, Laterality="R"), bundle)
    assert (overlay.Laterality, "ImageLaterality" in overlay) == ("R", False)
    unknown = make_dicom(np.zeros((8, 8, 3), np.uint8), ImageLaterality=None, PatientOrientation="")
    segmentation, overlay = results_of(unknown, bundle)
    assert (overlay.Laterality, overlay.PatientOrientation, segmentation.PatientOrientation) == ("", "", "")
    assert "ImageLaterality" not in overlay
    odd = make_dicom(np.zeros((8, 8, 3), np.uint8), ImageLaterality="LEFT", PatientOrientation="L")
    _, overlay = results_of(odd, bundle)
    assert "ImageLaterality" not in overlay, "it is none of those that there are"
    assert overlay.PatientOrientation == "", "it takes two"
    slice_ = make_dicom(np.zeros((8, 8), np.int16), CT, PatientOrientation=["L", "P"])
    assert "PatientOrientation" not in results_of(slice_, bundle)[0], "its ImageOrientationPatient says more"


@pytest.mark.parametrize("kind", [OP8, CAPTURE, CT, US])
def test_the_overlay_names_the_image_that_it_is_of(kind: str, bundle: Path) -> None:
    source = make_dicom(np.zeros((8, 8), np.uint8), kind)
    (item,) = results_of(source, bundle)[1].SourceImageSequence
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (kind, source.SOPInstanceUID)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PixelSpacing": [0.5, 1.0]}, [1, 2]),
        ({"PixelSpacing": [0.03, 0.02]}, [3, 2]),
        ({"PixelSpacing": [0.01, 0.01]}, None),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": None, "PixelAspectRatio": [1, 2]}, [1, 2]),
        ({"PixelSpacing": None, "PixelAspectRatio": [3, 3]}, None),
        ({"PixelSpacing": None, "PixelAspectRatio": [0, 1]}, None),
        ({"PixelSpacing": None, "PixelAspectRatio": 2}, None),
        ({"PixelSpacing": [1e-9, 1.0]}, None),
    ],
)
def test_pixels_of_an_overlay_are_as_oblong_as_those_of_the_image(
    changes: dict[str, Any], expected: list[int] | None, bundle: Path
) -> None:
    for found in results_of(make_dicom(np.zeros((8, 8, 3), np.uint8), **changes), bundle):
        assert (list(found.PixelAspectRatio) if "PixelAspectRatio" in found else None) == expected
    segmentation, overlay = results_of(make_dicom(np.zeros((8, 8), np.int16), CT, PixelSpacing=[0.5, 1.0]), bundle)
    assert "PixelAspectRatio" not in segmentation, "it has the spacing itself"
    assert list(overlay.PixelAspectRatio) == [1, 2]


def test_what_was_compressed_with_loss_says_so_for_ever(bundle: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    lossy: dict[str, Any] = {
        "LossyImageCompressionRatio": [10, 8.5],
        "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
    }
    for found in results_of(make_dicom(picture, LossyImageCompression="01", **lossy), bundle):
        assert found.LossyImageCompression == "01"
        assert list(found.LossyImageCompressionRatio) == [10, 8.5]
        assert list(found.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]
    silent = make_dicom(picture)
    silent.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    silent.PixelData = encapsulate([b"a stream"])
    for found in results_of(silent, bundle):
        assert (found.LossyImageCompression, found.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    for changes in ({}, {"LossyImageCompression": "00"}):
        segmentation, overlay = results_of(make_dicom(picture, **changes), bundle)
        assert segmentation.LossyImageCompression == "00"
        assert overlay.get("LossyImageCompression", "00") == "00"


@pytest.mark.parametrize("kind", ["binary", "fractional"])
@pytest.mark.parametrize("of", [OP8, CT, US])
def test_the_same_result_of_the_same_time_is_the_same_file(
    of: str, kind: Literal["binary", "fractional"], bundle: Path
) -> None:
    made = datetime(2026, 1, 2, 23, 30, 0, 250, timezone.utc)
    source = make_dicom(np.zeros((8, 8), np.uint8), of, TimezoneOffsetFromUTC="+0200")
    source.AcquisitionDateTime = "20200101120000"
    mask, probability = np.ones((8, 8), np.int64), np.ones((1, 8, 8), np.float32)
    first, again = (
        encoded(dicom_segmentation(source, mask, probability, read_bundle(bundle).manifest, "ab" * 32, kind, made=made))
        for _ in range(2)
    )
    assert first == again
    found = pydicom.dcmread(io.BytesIO(first))
    for name in ("Content", "InstanceCreation"):
        assert (found[f"{name}Date"].value, found[f"{name}Time"].value) == ("20260103", "013000.000250")
    times = [item.ContributionDateTime for item in found.ContributingEquipmentSequence]
    assert sorted(times) == ["20200101120000", "20260103013000.000250"], "of the camera, and of what wrote the file"
    (dimensions,) = found.DimensionOrganizationSequence
    assert {item.DimensionOrganizationUID for item in found.DimensionIndexSequence} == {
        dimensions.DimensionOrganizationUID
    }
    other = make_dicom(np.zeros((8, 8), np.uint8), of)
    of_other = results_of(other, bundle)[0].DimensionOrganizationSequence[0]
    assert of_other.DimensionOrganizationUID != dimensions.DimensionOrganizationUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools are not installed here")
@pytest.mark.parametrize("kind", [OP8, CAPTURE, CT, DX, US])
def test_results_with_all_of_it_are_what_the_standard_says(kind: str, bundle: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1",
        "PatientOrientation": ["L", "F"],
        "ImageLaterality" if kind in (OP8, DX) else "Laterality": "L",
    }
    source = make_dicom(np.zeros((8, 8), np.uint8), kind, **changes)
    source.PixelSpacing = [0.5, 1.0]
    for made in results_of(source, bundle):
        (tmp_path / "made.dcm").write_bytes(encoded(made))
        said = subprocess.run(["dciodvfy", tmp_path / "made.dcm"], capture_output=True, text=True, check=False)
        assert not [line for line in said.stderr.splitlines() if line.startswith("Error")], said.stderr
