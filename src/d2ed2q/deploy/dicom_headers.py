"""What the results of a DICOM image take over from its headers (PS3.3): characters, zone, sides, shape of pixels."""

from __future__ import annotations

import datetime
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from d2ed2q.data.dicom import spacing_of

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["MANUFACTURER", "refer_to", "set_aspect", "set_character_set", "set_compression", "set_sides", "set_zone"]

MANUFACTURER = "d2ed2q"
"""Of all results, which are known by it, too: they are not segmented again."""
_MULTI_BYTE = ("ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 149", "ISO 2022 IR 58")  # never the first of a list
_ALONE = ("ISO_IR 192", "GB18030", "GBK")  # have no code extensions
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}  # of JPEG 2000 (…4.91) only the header knows


def set_character_set(result: Dataset, source: Dataset) -> None:
    """Takes the image's character set over, written as the standard wants it (PS3.3 C.12.1.1.2)."""
    given = source.get("SpecificCharacterSet") or ""
    names = [str(name).strip() for name in ([given] if isinstance(given, str) else given)]
    if names[0] in _ALONE:
        names = names[:1]
    elif len(names) == 1 and names[0] not in _MULTI_BYTE:
        names = [names[0].replace("ISO 2022 IR ", "ISO_IR ")]  # code extensions make sense among several only
    else:
        first = ["ISO 2022 IR 6"] if names[0] in _MULTI_BYTE else [names.pop(0) or "ISO 2022 IR 6"]
        names = [name.replace("ISO_IR ", "ISO 2022 IR ") for name in first + names if name not in _ALONE]
    if names not in ([""], ["ISO_IR 6"]):  # which is what goes without saying
        result.SpecificCharacterSet = names


def set_zone(result: Dataset, source: Dataset) -> datetime.timezone | None:
    """Takes the zone over that the image's times are of (PS3.3 C.12.1.1); None where it names none."""
    found = re.fullmatch(r"([+-])(0\d|1[0-4])([0-5]\d)", str(source.get("TimezoneOffsetFromUTC", "")).strip())
    if found is None:
        return None
    result.TimezoneOffsetFromUTC = found[0]
    offset = datetime.timedelta(hours=int(found[2]), minutes=int(found[3]))
    return datetime.timezone(-offset if found[1] == "-" else offset)


def set_sides(result: Dataset, source: Dataset, laterality: bool = True) -> None:
    """Takes over which way up the image is (PS3.3 C.7.6.1.1.1), and which of a pair it shows; empty where unknown.

    Args:
        result: of the image.
        source: the image.
        laterality: whether the result says which of a pair, too: by ImageLaterality where the image has it, else by
            Laterality (C.7.3.1), which is required where the other is not there.
    """
    found = source.get("PatientOrientation") or ""
    result.PatientOrientation = "" if isinstance(found, str) or len(found) != 2 else list(found)
    if not laterality:
        return
    side = str(source.get("ImageLaterality") or "").strip()
    if side in ("R", "L", "U", "B"):
        result.ImageLaterality = side
    else:
        series = str(source.get("Laterality") or "").strip()
        result.Laterality = series if series in ("R", "L") else ""


def set_aspect(result: Dataset, source: Dataset) -> None:
    """Says the shape of pixels that are not square, of a result without a spacing (PS3.3 C.7.6.3.1.7)."""
    found, spacing = source.get("PixelAspectRatio"), spacing_of(source)
    try:
        height, width = map(int, found or ())
        ratio = Fraction(height, width)
    except (TypeError, ValueError, ZeroDivisionError):  # not there, a single value, or no numbers
        ratio = Fraction(1)
    if spacing is not None:
        ratio = Fraction(spacing[0] / spacing[1]).limit_denominator(1000)
    if ratio > 0 and ratio != 1:
        result.PixelAspectRatio = [ratio.numerator, ratio.denominator]


def set_compression(result: Dataset, source: Dataset) -> None:
    """Says that the image was compressed with loss, which it stays for ever (PS3.3 C.7.6.1.1.5)."""
    meta = getattr(source, "file_meta", None)
    method = _LOSSY.get("" if meta is None else str(meta.get("TransferSyntaxUID", "")))
    if source.get("LossyImageCompression") != "01" and method is None:
        return
    result.LossyImageCompression = "01"
    if source.get("LossyImageCompressionMethod") or method:
        result.LossyImageCompressionMethod = source.get("LossyImageCompressionMethod") or method
    if source.get("LossyImageCompressionRatio"):
        result.LossyImageCompressionRatio = source.LossyImageCompressionRatio


def refer_to(result: Dataset, source: Dataset) -> None:
    """Names the image that the result was made of (PS3.3 C.12.4)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    result.SourceImageSequence = [item]
