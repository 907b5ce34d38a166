"""A training on all labelled images: what it trains on, what it chooses, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from d2ed2q.cli import main
from d2ed2q.data import Sample, open_dataset
from d2ed2q.data.intensity import PERCENTILE
from d2ed2q.deploy import Predictor
from d2ed2q.deploy.model_card import markdown_card
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import write_values
from d2ed2q.recipes.experiment_tables import _threshold_images
from d2ed2q.recipes.run_data import recorded_data
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.training_parts import training_images
from d2ed2q.recipes.validation import Decided, decide

ALL: dict[str, Any] = {"training_images": "all", "threshold_images": "all", "clean": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_settings: Callable[..., TrainSettings]) -> RunFolder:
    return train(small_settings(tmp_path_factory.mktemp("all") / "run", **ALL, epochs=2))


def test_every_labelled_image_is_trained_on(run: RunFolder, trained: RunFolder, phantoms: Path) -> None:
    splits, held_out = (folder.read_json(folder.data)["splits"] for folder in (run, trained))
    assert sorted(splits["train"]) == sorted(case.id for case in open_dataset(phantoms).train)
    assert splits["validation"] == held_out["validation"], "the same images are watched"
    assert set(held_out["validation"]) <= set(splits["train"])
    assert set(splits["train"]).isdisjoint(splits["test"])
    _, cases = recorded_data(run)
    assert [case.id for case in cases["train"]] == splits["train"]


def test_images_that_were_trained_on_choose_neither_epoch_nor_view(
    tmp_path: Path, small_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2ed2q.recipes.validation.TELLING", 1)  # their number is no reason then
    seen: list[int] = []

    def decided(
        ensemble: DeepEnsemble,
        card: ModelCard,
        samples: Sequence[Sample],
        also: Iterable[Sample],
        prediction: str | None,
    ) -> Decided:
        assert prediction == "meta"
        also = list(also)
        seen.append(len(samples) + len(also))
        return decide(ensemble, card, samples, also, prediction)

    monkeypatch.setattr("d2ed2q.recipes.train.decide", decided)
    train(small_settings(tmp_path / "run", **ALL, epochs=1, quantize=False))
    assert set(seen) == {5}, "thresholds are of all five images, each counted once"


@pytest.mark.parametrize("wrong", [{"keep": "best"}, {"prediction": "better"}])
def test_what_needs_images_held_out_is_refused_at_once(
    wrong: dict[str, str], tmp_path: Path, small_settings: Callable[..., TrainSettings]
) -> None:
    with pytest.raises(ConfigError, match="not trained on"):
        small_settings(tmp_path / "run", **ALL, **wrong)


def test_nothing_is_scored_or_searched_on_images_that_were_trained_on(
    run: RunFolder, tmp_path: Path, phantoms: Path, small_values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    space, shared = tmp_path / "space.toml", tmp_path / "shared.toml"
    space.write_text("lr = {low = 1e-3, high = 3e-2}\n")
    write_values(shared, small_values | {"training_images": "all"})
    search = ["sweep", str(space), "--train", str(shared), "--data", str(phantoms), "--out", str(tmp_path / "search")]
    for command in (
        ["evaluate", str(run.path), "--split", "validation"],
        ["quantize", str(run.path), "--search", "--out", str(tmp_path / "search")],
        search,
    ):
        assert main(command) == 2, command
        assert "needs images that were not trained on" in capsys.readouterr().err.replace("\n", " "), command


def test_card_report_and_tables_say_which_images_were_seen(run: RunFolder, tmp_path: Path) -> None:
    assert main(["evaluate", str(run.path)]) == 0
    page = run.report.read_text(encoding="utf-8")
    assert "chosen on the training images" in page
    assert "5, validation 1, trained on too" in page
    file = tmp_path / "model.d2q"
    assert main(["export", str(run.path), "-o", str(file), "--tolerance", "100"]) == 0
    manifest = Predictor(file).manifest
    assert len(manifest.provenance["sha256"]) == 5
    card = markdown_card(manifest, {}).decode()
    assert "chosen on the training images, on probabilities" in card
    assert "chosen on some of the training images; both" in card
    assert "On 1 of the training images, as trained" in card
    result = {"split": {"train": 5, "validation": 1}, "training_images": "all", "threshold_images": "all"}
    assert _threshold_images(result) == "all of the 5 training images"
    assert _threshold_images({**result, "threshold_images": "validation"}) == "1 of the 5 training images"


def test_only_colour_photographs_have_a_hue(phantoms: Path, small_settings: Callable[..., TrainSettings]) -> None:
    dataset = open_dataset(phantoms)
    modalities = dataclasses.replace(dataset, intensity=PERCENTILE)  # three of them, in three files or in one
    apart = tuple(dataclasses.replace(case, further=(case.image,)) for case in dataset.train)
    assert dataset.in_colour
    assert not modalities.in_colour
    assert not dataclasses.replace(dataset, train=apart).in_colour
    colourful = small_settings(Path("run"), hue=30.0, saturation=30.0, value=0.0)
    plain = dataclasses.replace(colourful, hue=0.0, saturation=0.0)
    for kind, changed in ((dataset, True), (modalities, False)):
        views = [training_images(settings, kind, dataset.train[:1]) for settings in (colourful, plain)]
        same = []
        for epoch in range(8):
            for images in views:
                images.set_epoch(epoch)
            same.append(torch.equal(views[0][0]["image"].sort(0).values, views[1][0]["image"].sort(0).values))
        assert all(same) != changed
