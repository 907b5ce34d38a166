from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.data import field_of_view, make_phantom
from d2ed2q.errors import DataError, RunFolderError
from d2ed2q.recipes.predict import predict, predict_image
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import PredictSettings


def test_a_folder_of_images_gives_four_pictures_each(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    folder = phantoms / "test" / "images"
    masks = predict(PredictSettings(model=trained.path, inputs=(folder,), out=tmp_path / "out")).masks
    stems = sorted(path.stem for path in folder.iterdir())
    assert [path.name for path in masks] == [f"{stem}_mask.png" for stem in stems]
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    kinds = ("mask", "probability", "uncertainty", "overlay")
    assert names == {f"{stem}_{kind}.png" for stem in stems for kind in kinds}
    mask = np.asarray(Image.open(masks[0]))
    assert mask.shape == (96, 96)
    assert set(np.unique(mask)) == {0, 255}
    region = field_of_view(np.asarray(Image.open(folder / f"{stems[0]}.png")))
    assert not mask[~region].any(), "a model trained with fields of view says nothing outside of them"
    probability = np.asarray(Image.open(tmp_path / "out" / f"{stems[0]}_probability.png")) / 255
    card, image = trained.read_card(), np.asarray(Image.open(folder / f"{stems[0]}.png"))
    same = predict_image(trained.load(), image, tta=card.tta, region=region, rule=card.rule)
    np.testing.assert_array_equal(mask, same.mask * np.uint8(255))
    np.testing.assert_allclose(probability, same.probability[0], atol=1 / 255)


def test_without_a_rule_of_specks_the_mask_is_the_thresholded_probability(trained: RunFolder) -> None:
    phantom = make_phantom(3, (64, 64))
    ensemble = trained.load()
    prediction = predict_image(ensemble, phantom.image, region=phantom.roi)
    threshold = ensemble.threshold_of(ensemble.prediction_name)
    np.testing.assert_array_equal(prediction.mask > 0, (prediction.probability[0] > threshold) & phantom.roi)


def test_uncertainty_is_high_where_learners_are_undecided(trained: RunFolder) -> None:
    phantom = make_phantom(3, (64, 64))
    prediction = predict_image(trained.load(), phantom.image, region=phantom.roi)
    assert prediction.learners.shape == (3, 1, 64, 64)
    assert prediction.mask.shape == prediction.uncertainty.shape == (64, 64)
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1
    assert not prediction.uncertainty[~phantom.roi].any()
    undecided = np.abs(prediction.learners.mean(0)[0] - 0.5)
    inside = phantom.roi
    assert np.corrcoef(undecided[inside], prediction.uncertainty[inside])[0, 1] < -0.9


def test_grey_images_are_taken_as_colour_and_odd_sizes_are_fine(trained: RunFolder) -> None:
    prediction = predict_image(trained.load(), np.full((33, 47, 1), 90, np.uint8))
    assert prediction.mask.shape == (33, 47)
    with pytest.raises(DataError, match="3 channels, this one has 2"):
        predict_image(trained.load(), np.zeros((8, 8, 2), np.uint8))


def test_bad_inputs_are_refused_before_anything_is_written(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    image = next((phantoms / "test" / "images").iterdir())
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    same = tmp_path / image.name
    same.write_bytes(image.read_bytes())
    for inputs, message in (
        ((tmp_path / "nothing.png",), "no file or folder"),
        ((tmp_path / "empty",), "no image in"),
        ((image, same), "same name"),
    ):
        with pytest.raises(DataError, match=message):
            predict(PredictSettings(model=trained.path, inputs=inputs, out=out))
        assert not out.exists()


def test_pictures_of_a_folder_that_cannot_be_read_are_said(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "test" / "images", tmp_path / "in")
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "photo.webp")
    done = predict(PredictSettings(trained.path, (tmp_path / "in",), out=tmp_path / "out"))
    assert [path.name for path in done.failed] == ["photo.webp"]
    assert len(done.masks) == len(list((tmp_path / "in").iterdir())) - 1
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone.png leads nowhere; fetch the file, or remove the link"):
        predict(PredictSettings(trained.path, (tmp_path / "in",), out=tmp_path / "out"))


def test_nothing_of_an_earlier_picture_stays_beside_an_error(
    trained: RunFolder, phantoms: Path, tmp_path: Path
) -> None:
    image, out = tmp_path / "photo.png", tmp_path / "out"
    image.write_bytes(next((phantoms / "test" / "images").iterdir()).read_bytes())
    predict(PredictSettings(model=trained.path, inputs=(image,), out=out))
    (out / "photo_objects.png").write_bytes(b"of another model")
    predict(PredictSettings(model=trained.path, inputs=(image,), out=out, overwrite=True))
    assert not (out / "photo_objects.png").exists()
    assert len(list(out.glob("photo_*"))) == 4
    image.write_bytes(image.read_bytes()[:200])
    found = predict(PredictSettings(model=trained.path, inputs=(image,), out=out))
    assert "truncated" in found.images[0]["error"]
    assert not list(out.glob("photo_*"))


def test_an_output_folder_that_exists_is_refused(trained: RunFolder, phantoms: Path, tmp_path: Path) -> None:
    image = next((phantoms / "test" / "images").iterdir())
    (tmp_path / "precious.txt").write_text("")
    with pytest.raises(RunFolderError, match="--overwrite"):
        predict(PredictSettings(model=trained.path, inputs=(image,), out=tmp_path))
    predict(PredictSettings(model=trained.path, inputs=(image,), out=tmp_path, overwrite=True))
    assert (tmp_path / "precious.txt").exists()
    assert (tmp_path / f"{image.stem}_mask.png").exists()
