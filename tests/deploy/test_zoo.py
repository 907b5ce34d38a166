"""The models that come with the package: small, sound, described, and as good on real images as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from d2ed2q.cli import main
from d2ed2q.data import checksums, is_volume, open_dataset, read_image, read_volume
from d2ed2q.deploy import Predictor, available_engines, model_path, read_bundle, zoo
from d2ed2q.errors import BundleError

SCORED = {
    "glands": ("GlaS", 6, 0.75),
    "hippocampus": ("Task04_Hippocampus", 4, 0.85),
    "neuron-membranes": ("ISBI2012", 3, 0.93),
    "polyps": ("Kvasir-SEG", 6, 0.80),
    "retina-vessels": ("DRIVE", 4, 0.81),
    "retina-vessels-children": ("CHASE_DB1", 4, 0.78),
}
"""Of every model: its set, how many test images are looked at here, and the Dice that it must have there."""


def test_every_model_is_scored_below() -> None:
    assert set(zoo()) == set(SCORED)


@pytest.mark.parametrize("name", sorted(SCORED))
def test_it_is_small_sound_and_says_what_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = read_bundle(model_path(Path(name)))
    assert bundle.size < 500_000
    assert bundle.manifest.name == name
    for engine in available_engines():
        assert Predictor(bundle, engine).self_test().passed, engine
    assert bundle.manifest.provenance["terms"]
    assert bundle.manifest.refusal is not None
    assert main(["zoo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[name]["bytes"] == bundle.size


@pytest.mark.parametrize("name", sorted(SCORED))
def test_it_finds_on_real_images_what_it_should(name: str, real_data: Callable[[str], Path]) -> None:
    folder, count, least = SCORED[name]
    dataset = open_dataset(real_data(folder))
    predictor = Predictor(model_path(Path(name)))
    trained = set(predictor.manifest.provenance["sha256"])
    cases = [case for case in (*dataset.test, *dataset.train) if case.labelled]
    unseen = [case for case in cases if checksums([case])[case.id] not in trained]
    found = true = both = 0
    for case in unseen[:count]:
        image = read_volume(case.image) if is_volume(case.image) else read_image(case.image)
        mask, label = predictor(image, tta="none").mask > 0, dataset.read(case).label
        assert label is not None
        found, true = found + int(mask.sum()), true + int((label > 0).sum())
        both += int((mask & (label.numpy() > 0)).sum())
    assert 2 * both / (found + true) > least


def test_a_name_that_is_not_there_gets_the_nearest() -> None:
    with pytest.raises(BundleError, match="did you mean retina-vessels"):
        model_path(Path("retina-vesels"))
