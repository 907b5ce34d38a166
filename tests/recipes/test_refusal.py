from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2ed2q.data import Sample
from d2ed2q.deploy import Bundle, make_prediction, read_bundle
from d2ed2q.deploy.manifest import Refusal
from d2ed2q.deploy.prediction import Prediction
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.export_files import write_export
from d2ed2q.recipes.predict import LOG, predict
from d2ed2q.recipes.refusal import find_refusal, separating_bound, spoilt
from d2ed2q.recipes.settings import ExportSettings, PredictSettings
from d2ed2q.serve.model import Model


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40))
def test_a_bound_lies_between_doubts_and_keeps_what_is_protected(cases: list[tuple[float, bool]]) -> None:
    doubt, usable = np.array([d for d, _ in cases]), np.array([u for _, u in cases])
    bound = separating_bound(doubt, usable, usable)
    if usable.all() or not usable.any():
        assert bound is None
    elif bound is not None:
        assert doubt.min() <= bound <= doubt.max()
        assert (doubt[usable] <= bound).mean() >= 0.95


def test_the_bound_separates_what_can_be_separated() -> None:
    doubt = np.array([0.1, 0.2, 0.3, 0.5, 0.9])
    usable = np.array([True, True, True, False, False])
    assert separating_bound(doubt, usable, usable) == pytest.approx(0.4)
    assert separating_bound(doubt, usable, np.zeros(5, bool)) == pytest.approx(0.4)
    # One good image of two may not be given up, whatever else that would catch.
    assert separating_bound(np.array([0.1, 0.6, 0.3, 0.4, 0.7]), usable[[0, 1, 3, 4, 4]], usable[[0, 1, 3, 4, 4]]) == (
        pytest.approx(0.65)
    )
    # Nor one that has a little more doubt than those that were seen.
    doubt, usable = np.array([0.1, 0.15, 0.3, 0.5, 0.9]), np.array([True, False, False, False, False])
    assert separating_bound(doubt, usable, usable) == pytest.approx(0.125)
    assert separating_bound(doubt, usable, usable, room=2.0) == pytest.approx(0.225)
    assert separating_bound(doubt, usable, usable, room=8.0) is None
    assert separating_bound(np.full(5, 0.2), usable, usable) is None


def test_copies_are_blurred_at_the_scale_the_model_sees_and_darkened() -> None:
    image = np.zeros((1, 33, 33), np.float32)
    image[0, 16, 16] = 1
    copies = list(spoilt(image, (1.0, 2.0)))
    assert len(copies) == 6
    rows, columns = copies[0][0].sum(1), copies[0][0].sum(0)
    spread = [float(np.sqrt((np.arange(33) - 16.0) ** 2 @ line / line.sum())) for line in (rows, columns)]
    assert spread == pytest.approx([2.0, 4.0], rel=0.05)
    assert [float(copy.max()) for copy in copies[3:]] == pytest.approx([0.5, 0.25, 0.1])


def _sample(index: int) -> Sample:
    image = torch.zeros(1, 32, 32)
    image[0, 8:24, 4 + index : 20 + index] = 0.9
    return Sample(image, (image[0] > 0.5).long(), None, f"image {index}", "patient")


def _seen(image: np.ndarray, _: Sample) -> Prediction:
    """Learners that agree on what is bright, and guess where nothing is."""
    guess = np.random.default_rng(0).random(image.shape, np.float32)
    sure = image > 0.45 - 1e-6
    learners = np.stack([np.where(sure.any(), sure, np.roll(guess, k, -1)) for k in range(3)]).astype(np.float32)
    return make_prediction(learners, "meta", 0.45)


def test_unusable_copies_are_told_from_usable_ones() -> None:
    found = find_refusal(_seen, lambda _: (0.1, 0.1), [_sample(index) for index in range(3)])
    assert found is not None
    assert found.images == 21
    assert found.dice == pytest.approx(0.8)
    assert (found.refused, found.kept) == (1, 1)
    assert _seen(_sample(0).image.numpy(), _sample(0)).doubt < found.doubt < 1


def test_without_foreground_or_without_a_difference_there_is_no_bound() -> None:
    empty = replace(_sample(0), label=torch.zeros(32, 32, dtype=torch.int64))
    assert find_refusal(_seen, lambda _: (1.0, 1.0), [empty]) is None

    def always(_: np.ndarray, sample: Sample) -> Prediction:
        assert sample.label is not None
        return make_prediction(np.repeat(sample.label.numpy()[None, None].astype(np.float32), 3, 0), "meta", 0.5)

    assert find_refusal(always, lambda _: (1.0, 1.0), [_sample(0)]) is None


def with_bound(bundle: Bundle, path: Path, doubt: float | None) -> Path:
    refusal = None if doubt is None else Refusal(doubt, 0.6, 14, 1.0, 1.0)
    settings = ExportSettings(run=Path("run"), out=path)
    write_export(settings, replace(bundle.manifest, refusal=refusal), onnx.load_from_string(bundle.model), {})
    return path


def test_refused_images_get_no_mask_and_no_error(
    bundle: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (tmp_path / "taken").mkdir()
    for index, source in enumerate(sorted((phantoms / "test" / "images").iterdir())[:2]):
        with Image.open(source) as picture:
            picture.point(lambda v, dark=index: v // 9 if dark else v).save(tmp_path / "taken" / f"{index}.png")
    # Which of the two is doubted more, a model that was trained for a second decides by chance.
    taken = predict(PredictSettings(model=bundle, inputs=(tmp_path / "taken",), out=tmp_path / "first"))
    order = sorted((record["doubt"], index) for index, record in enumerate(taken.images))
    for rank, (_, index) in enumerate(order):
        shutil.copyfile(tmp_path / "taken" / f"{index}.png", photos / f"photo{rank}.png")
    plain = predict(PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "plain"))
    assert plain.refused == {}
    doubts = [record["doubt"] for record in plain.images]
    assert doubts[0] < doubts[1]
    settings = PredictSettings(model=bundle, inputs=(photos,), out=out, refuse=sum(doubts) / 2)
    found = predict(settings)
    assert [path.name for path in found.masks] == ["photo0_mask.png"]
    assert found.refused == {photos / "photo1.png": doubts[1]}
    assert not found.failed
    assert sorted(path.name for path in out.glob("photo1*")) == []
    assert "refused" in capsys.readouterr().err
    assert predict(settings).skipped == 2
    (photos / "photo0.png").write_bytes((photos / "photo1.png").read_bytes())  # the old mask is no longer true
    again = predict(settings)
    assert (len(again.masks), len(again.refused), again.skipped) == (0, 2, 1)
    assert [path.name for path in out.iterdir()] == [LOG]


def test_the_bound_of_the_bundle_is_taken_where_it_is_asked_for(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    photos = phantoms / "test" / "images"
    sound = read_bundle(bundle)
    strict = with_bound(sound, tmp_path / "strict.d2q", 0.0)
    found = predict(PredictSettings(model=strict, inputs=(photos,), out=tmp_path / "out", refuse="model"))
    assert len(found.refused) == len(found.images)
    header = json.loads((tmp_path / "out" / LOG).read_text(encoding="utf-8").splitlines()[0])
    assert header["refuse"] == 0
    silent = with_bound(sound, tmp_path / "silent.d2q", None)
    with pytest.raises(ConfigError, match="brings no bound"):
        predict(PredictSettings(model=silent, inputs=(photos,), out=tmp_path / "none", refuse="model"))
    with pytest.raises(ConfigError, match="refuse must be model, or a doubt from 0 to 1"):
        PredictSettings(model=silent, inputs=(photos,), out=tmp_path / "none", refuse=1.5)


def test_a_node_takes_the_bound_of_its_bundle_unless_it_has_its_own(bundle: Path, tmp_path: Path) -> None:
    strict = read_bundle(with_bound(read_bundle(bundle), tmp_path / "strict.d2q", 0.25))
    assert Model(strict, threads=1).refuse == 0.25
    assert Model(strict, threads=1, refuse=1.0).refuse == 1.0
