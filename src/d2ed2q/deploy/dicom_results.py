"""A prediction as DICOM: a segmentation (SEG), and an overlay for viewers that show none, in the study of the image."""

from __future__ import annotations

import copy
import datetime
import io
import re
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from d2ed2q.deploy.dicom_headers import (
    MANUFACTURER,
    refer_to,
    set_aspect,
    set_character_set,
    set_compression,
    set_sides,
    set_zone,
)
from d2ed2q.deploy.manifest import Manifest
from d2ed2q.errors import DataError, first_line

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

__all__ = ["DICOM_NOTE", "dicom_overlay", "dicom_segmentation", "encoded"]

DICOM_NOTE = "Research use only; not a medical device"
_MULTI_FRAME = (
    *("1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.5.2"),  # ophthalmic photographs
    *("1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.4"),  # secondary captures
)
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)  # of type 2: they may be empty, but results have to have them
_PREFIX = "2.25."  # UIDs made of UUIDs (PS3.5 B.2)
# SNOMED CT codes, which every segment has to have (PS3.3 C.8.20.2): category and type, by a word of the class's name.
_CODES = {
    "vessel": (("123037004", "Anatomical Structure"), ("59820001", "Blood vessel")),
    "polyp": (("49755003", "Morphologically Abnormal Structure"), ("41329004", "Polyp")),
    "gland": (("123037004", "Anatomical Structure"), ("134358001", "Glandular structure")),
    "hippocampus": (("123037004", "Anatomical Structure"), ("5366008", "Hippocampus")),
    "lesion": (("49755003", "Morphologically Abnormal Structure"), ("52988006", "Lesion")),
    "tumor": (("49755003", "Morphologically Abnormal Structure"), ("108369006", "Neoplasm")),
    "nodule": (("49755003", "Morphologically Abnormal Structure"), ("27925004", "Nodule")),
}
_ANY = (("85756007", "Tissue"), ("85756007", "Tissue"))


def dicom_segmentation(
    source: Dataset,
    mask: np.ndarray,
    probability: np.ndarray,
    manifest: Manifest,
    sha256: str,
    kind: Literal["binary", "fractional"] = "binary",
    tta: str | None = None,
    made: datetime.datetime | None = None,
) -> Dataset:
    """A prediction as a DICOM Segmentation (PS3.3 A.51) in the study of the image, in a series of its own.

    Args:
        source: the image, of a single frame.
        mask: class numbers, of the image's size.
        probability: ``C×H×W`` in [0, 1]; of a binary task the foreground's.
        manifest: of the model.
        sha256: of the model's bundle; it is the software version that the file names, whole.
        kind: ``binary`` has masks, ``fractional`` the probabilities.
        tta: test-time augmentation of the prediction; None is the model's own.
        made: when it was made, in local time where it has no zone; None is now. With the same time the same result is
            the same file, byte by byte, as its instance UID is the same.

    Raises:
        DataError: the image lacks what its results need, such as a study.
        ModuleNotFoundError: highdicom is not installed.
    """
    import highdicom as hd

    names, what = manifest.output.classes[1:], f"seg-{kind}{_augmented(manifest, tta)}"
    if kind == "binary":
        planes = np.stack([mask == number for number in range(1, len(names) + 1)], axis=-1)
        segmentation_type = hd.seg.SegmentationTypeValues.BINARY
        pixels = planes.astype(np.uint8)
    else:
        shown = probability if len(probability) == 1 else probability[1:]
        segmentation_type = hd.seg.SegmentationTypeValues.FRACTIONAL
        pixels = np.moveaxis(np.clip(shown, 0, 1), 0, -1).astype(np.float32)
    try:
        referenced = _understood(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result: Dataset = hd.seg.Segmentation(
                source_images=[referenced],
                pixel_array=pixels[None],
                segmentation_type=segmentation_type,
                segment_descriptions=[
                    _segment(number, name, manifest, sha256) for number, name in enumerate(names, start=1)
                ],
                series_instance_uid=_uid(source, sha256, "seg"),
                series_number=_series_number(source, 1),
                sop_instance_uid=_uid(source, sha256, what),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=_text(manifest.name, 64),
                software_versions=sha256,
                device_serial_number=sha256,
                series_description=_described(f"{', '.join(names)} by {manifest.name}"),
                content_description=_text(DICOM_NOTE, 64),
                omit_empty_frames=False,
                fractional_type=hd.seg.SegmentationFractionalTypeValues.PROBABILITY,
                specific_character_set=None,  # it does not know all of them
            )
        _restore_references(result, referenced, source)
        _complete(result, source, made)
        for element in result.iterall():
            if element.keyword == "DimensionOrganizationUID":  # highdicom draws it
                element.value = _uid(source, sha256, f"{what}-dimensions")
    except DataError:
        raise
    except Exception as error:  # what highdicom raises depends on which attribute of the source is amiss
        raise DataError(f"the image lacks what a segmentation of it needs: {first_line(error)}") from error
    return result


def _complete(result: Dataset, source: Dataset, made: datetime.datetime | None) -> None:
    """Gives a segmentation what highdicom does not take over from the image, or takes from the clock."""
    set_character_set(result, source)
    when = (made or datetime.datetime.now()).astimezone(set_zone(result, source))
    result.ContentDate = result.InstanceCreationDate = when.strftime("%Y%m%d")
    result.ContentTime = result.InstanceCreationTime = when.strftime("%H%M%S.%f")
    for equipment in result.get("ContributingEquipmentSequence", ()):
        if equipment.get("ManufacturerModelName") == "highdicom":  # the others are the image's own
            equipment.ContributionDateTime = when.strftime("%Y%m%d%H%M%S.%f")
    if "ImageOrientationPatient" not in source:  # which says more
        set_sides(result, source, laterality=False)
    set_compression(result, source)
    if all(element.keyword != "PixelSpacing" for element in result.iterall()):
        set_aspect(result, source)


def dicom_overlay(
    source: Dataset, picture: np.ndarray, manifest: Manifest, sha256: str, tta: str | None = None
) -> Dataset:
    """A picture of the result as a Secondary Capture Image (PS3.3 A.8) in the study of the image.

    Args:
        source: the image.
        picture: uint8 ``H×W×3``.
        manifest: of the model.
        sha256: of the model's bundle.
        tta: as of :func:`dicom_segmentation`.

    Raises:
        DataError: the image lacks a study, or has headers that cannot be understood.
    """
    try:
        return _overlay(source, picture, manifest, sha256, tta)
    except DataError:
        raise
    except Exception as error:  # what pydicom raises depends on which header is odd, and how
        raise DataError(f"the image has headers that no overlay can be made of: {first_line(error)}") from error


def _overlay(source: Dataset, picture: np.ndarray, manifest: Manifest, sha256: str, tta: str | None) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    if not source.get("StudyInstanceUID"):
        raise DataError("the image names no study (StudyInstanceUID) that its results could be put into")
    result = Dataset()
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.SOPClassUID = result.file_meta.MediaStorageSOPClassUID = UID(_CAPTURE)
    result.SOPInstanceUID = _uid(source, sha256, f"overlay-instance{_augmented(manifest, tta)}")
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    for keyword in ("StudyInstanceUID", *_PATIENT_AND_STUDY):
        setattr(result, keyword, copy.copy(source.get(keyword, "")))
    if source.get("IssuerOfPatientID"):  # without it, a number of one hospital may be another's
        result.IssuerOfPatientID = source.IssuerOfPatientID
    set_character_set(result, source)
    set_zone(result, source)
    result.Modality = "OT"
    result.SeriesInstanceUID = _uid(source, sha256, "overlay")
    result.SeriesNumber, result.InstanceNumber = _series_number(source, 2), 1
    result.SeriesDescription = _described(f"overlay by {manifest.name}")
    result.Manufacturer, result.ManufacturerModelName = MANUFACTURER, _text(manifest.name, 64)
    result.SoftwareVersions = result.DeviceSerialNumber = sha256
    result.ConversionType = "SYN"  # made by a program
    result.ImageType = ["DERIVED", "SECONDARY"]
    result.BurnedInAnnotation = "NO" if source.get("BurnedInAnnotation", "") == "NO" else "YES"
    result.DerivationDescription = _text(
        f"{DICOM_NOTE}. Overlay of a segmentation by model {sha256}, {manifest.name}", 1024
    )
    refer_to(result, source)
    set_sides(result, source)
    set_compression(result, source)
    result.Rows, result.Columns = picture.shape[:2]
    result.SamplesPerPixel, result.PhotometricInterpretation, result.PlanarConfiguration = 3, "RGB", 0
    result.BitsAllocated, result.BitsStored, result.HighBit, result.PixelRepresentation = 8, 8, 7, 0
    set_aspect(result, source)
    result.PixelData = picture.tobytes() + b"\0" * (picture.nbytes % 2)
    return result


def encoded(dataset: Dataset) -> bytes:
    """The file of a dataset (PS3.10).

    Raises:
        DataError: it has values, taken over from the image, that cannot be written.
    """
    import pydicom

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    except Exception as error:
        raise DataError(f"the image has headers that cannot be written again: {first_line(error)}") from error
    return buffer.getvalue()


def _understood(source: Dataset) -> Dataset:
    """The image as highdicom can take it: without pixels, and with everything that it reads whether it is there or not.

    Ophthalmic photographs are a multi-frame class without the functional groups that highdicom looks for in one; so are
    secondary captures. A copy that claims to be a Secondary Capture Image, without what only multi-frame images have,
    is taken; the references to it are put right afterwards.
    """
    from pydicom.dataset import Dataset

    if not source.get("StudyInstanceUID"):
        raise DataError("the image names no study (StudyInstanceUID) that its results could be put into")
    copied = Dataset()
    copied.update(source)
    copied.pop("PixelData", None)
    copied = copy.deepcopy(copied)
    copied.pop("NumberOfFrames", None)  # it is 1
    if str(source.SOPClassUID) in _MULTI_FRAME:
        copied.SOPClassUID = _CAPTURE
        copied.pop("PixelSpacing", None)
    for keyword in _PATIENT_AND_STUDY:
        if keyword not in copied:
            setattr(copied, keyword, "")
    return copied


def _restore_references(result: Dataset, referenced: Dataset, source: Dataset) -> None:
    """Lets every reference to the image name its own class again."""
    if referenced.SOPClassUID == source.SOPClassUID:
        return
    for element in result.iterall():
        if element.keyword == "ReferencedSOPClassUID" and str(element.value) == _CAPTURE:
            element.value = source.SOPClassUID


def _segment(number: int, name: str, manifest: Manifest, sha256: str) -> SegmentDescription:
    import highdicom as hd
    from pydicom.sr.coding import Code

    # The Medical Segmentation Decathlon's names of the parts of the hippocampus say too little by themselves.
    parts = {known.lower() for known in manifest.output.classes[1:]} == {"anterior", "posterior"}
    meant = "hippocampus" if parts else name.lower()
    category, kind = next((codes for word, codes in _CODES.items() if word in meant), _ANY)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(name, 64),
        segmented_property_category=Code(category[0], "SCT", category[1]),
        segmented_property_type=Code(kind[0], "SCT", kind[1]),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_text(manifest.name, 64),
            version=sha256,
            family=Code("123109", "DCM", "Artificial Intelligence"),
        ),
    )


def _uid(source: Dataset, sha256: str, what: str) -> str:
    """The same image, model and kind of result always give the same UID: what is sent twice is stored once."""
    import uuid

    return f"{_PREFIX}{uuid.uuid5(uuid.NAMESPACE_OID, f'{source.SOPInstanceUID} {sha256} {what}').int}"


def _augmented(manifest: Manifest, tta: str | None) -> str:
    """What another test-time augmentation than the model's own adds: other pixels are another instance."""
    return "" if tta in (None, manifest.output.tta) else f"-{tta}"


def _series_number(source: Dataset, what: int) -> int:
    return (int(source.get("SeriesNumber") or 0) % 10_000) * 100 + 90 + what


def _described(what: str) -> str:
    """A series' description; the warning comes first, so that neither its 64 characters nor a narrow column cut it."""
    return _text(f"{DICOM_NOTE}: {what}", 64)


def _text(text: str, length: int) -> str:
    """What fits into an attribute: no backslashes (they divide values) and no control characters."""
    return re.sub(r"[\\\x00-\x1f\x7f]", " ", text)[:length].strip()
