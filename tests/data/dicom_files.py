"""DICOM files for tests, of made-up patients, as close to real ones as the checks of dicom3tools ask for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

OP8 = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
US = "1.2.840.10008.5.1.4.1.1.6.1"
MODALITY = {OP8: "OP", CAPTURE: "OT", CT: "CT", MR: "MR", CR: "CR", DX: "DX", US: "US"}


def make_dicom(pixels: np.ndarray, kind: str = OP8, **changes: Any) -> Dataset:
    """One image.

    Args:
        pixels: uint8 ``H×W×3`` or ``H×W``, or uint16 or int16 ``H×W``.
        kind: SOP class.
        **changes: attributes by keyword; None removes one.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(kind)
    dataset.SOPClassUID = kind
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID = "Made^Up", "MU-1"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyDate = dataset.ContentDate = "20260101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "A1", "S1", ""
    dataset.Modality = MODALITY[kind]
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.Manufacturer = "made up"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    colour = pixels.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    if kind == OP8:
        dataset.NumberOfFrames = 1
        dataset.PixelSpacing = [0.01, 0.01]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
        dataset.ImageLaterality = "R"
    if kind in (CT, MR):
        dataset.FrameOfReferenceUID = generate_uid()
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 1.0
    if kind == CT:
        dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def as_bytes(dataset: Dataset) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
