"""What is chosen on validation images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.run_folder import ModelCard, RunFolder
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

Make = Callable[..., TrainSettings]


def test_the_prediction_and_its_threshold_are_chosen_on_validation_images(
    tmp_path: Path, small_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **changes: Any) -> RunFolder:
        return train(small_settings(tmp_path / name, epochs=1, quantize=False, **changes))

    def best(card: ModelCard) -> str:
        return max(("meta", "ensemble"), key=lambda name: card.validation_dice[name])

    better = run("better", prediction="better")
    card, ensemble = better.read_card(), better.load()

    def scores(of: RunFolder) -> dict[str, float]:
        """Of the last validation."""
        lines = map(json.loads, of.metrics.read_text().splitlines())
        last: dict[str, float] = [line for line in lines if line["kind"] == "validation"][-1]
        return last

    seen = scores(better)
    assert seen["score"] == max(seen["meta_auc"], seen["ensemble_auc"])
    assert card.prediction == ensemble.prediction_name == best(card)
    runs = {name: run(name, prediction=name) for name in ("meta", "ensemble")}
    assert all(scores(of)["score"] == seen[f"{name}_auc"] for name, of in runs.items())
    given = {name: of.read_card() for name, of in runs.items()}
    assert {name: card.prediction for name, card in given.items()} == {"meta": "meta", "ensemble": "ensemble"}
    assert all(other.thresholds == card.thresholds for other in given.values())
    # One image cannot tell which is better; where it is said that it can, it chooses.
    assert run("few").read_card().prediction == "meta"
    assert run("apart", fuse=False).read_card().prediction == "ensemble"
    monkeypatch.setattr("d2ed2q.recipes.validation.TELLING", 1)
    enough = run("enough", fuse=False).read_card()
    assert enough.prediction == best(enough)
    with pytest.raises(ConfigError, match=r"one plain network .* has no meta"):
        small_settings(tmp_path / "one", learners=0, prediction="meta")
    assert all(ensemble.threshold_of(name) == pytest.approx(card.thresholds[name]) for name in card.thresholds)
    assert card.thresholds["meta"] != 0.5
