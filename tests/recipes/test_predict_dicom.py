from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pydicom
import pytest
from PIL import Image

from d2ed2q.data import make_phantom
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.recipes.export_files import write_export
from d2ed2q.recipes.predict import predict
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import ExportSettings, PredictSettings

from ..data.dicom_files import OP8, as_bytes, make_dicom


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    picture = make_phantom(5, (96, 96)).image
    (folder / "eye.dcm").write_bytes(as_bytes(make_dicom(picture, OP8)))
    (folder / "broken.dcm").write_bytes(b"no DICOM at all" * 20)
    Image.fromarray(picture).save(folder / "same.png")
    return folder


def test_a_bundle_writes_a_dicom_segmentation_too(bundle: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = predict(PredictSettings(bundle, (photographs,), out))
    assert [path.name for path in found.masks] == ["same_mask.png", "eye_mask.png"]
    assert [path.name for path in found.failed] == ["broken.dcm"]
    mask, same = (np.asarray(Image.open(out / f"{name}_mask.png")) > 0 for name in ("eye", "same"))
    assert np.array_equal(mask, same)
    segmentation = pydicom.dcmread(out / "eye_segmentation.dcm")
    assert np.array_equal(segmentation.pixel_array.reshape(96, 96) > 0, mask)
    assert not (out / "same_segmentation.dcm").exists()


def test_a_run_folder_reads_dicom(trained: RunFolder, photographs: Path, tmp_path: Path) -> None:
    found = predict(PredictSettings(trained.path, (photographs / "eye.dcm",), tmp_path / "out"))
    assert [path.name for path in found.masks] == ["eye_mask.png"]


def test_a_model_of_one_spacing_takes_pictures_that_tell_theirs(bundle: Path, tmp_path: Path) -> None:
    sound = read_bundle(bundle)
    manifest = replace(sound.manifest, input=replace(sound.manifest.input, spacing=(0.02, 0.02)))
    path, folder = tmp_path / "spaced.d2q", tmp_path / "photographs"
    write_export(ExportSettings(run=Path("run"), out=path), manifest, onnx.load_from_string(sound.model), {})
    folder.mkdir()
    picture = make_phantom(5, (96, 96)).image
    for name, step in (("same", 0.02), ("finer", 0.01)):
        source = make_dicom(picture, OP8)
        source.PixelSpacing = [step, step]
        (folder / f"{name}.dcm").write_bytes(as_bytes(source))
    Image.fromarray(picture).save(folder / "silent.png")
    found = predict(PredictSettings(path, (folder,), tmp_path / "out", tta="none"))
    assert "millimetres a pixel has" in next(iter(found.failed.values()))
    finer, same = (np.asarray(Image.open(tmp_path / "out" / f"{name}_probability.png")) for name in ("finer", "same"))
    expected = Predictor(bundle)(picture, tta="none").probability[0]
    assert np.abs(same / 255 - expected).max() < 0.01
    assert finer.shape == (96, 96)
    assert np.abs(finer / 255 - expected).max() > 0.05  # seen at half its resolution
