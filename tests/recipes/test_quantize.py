from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2ed2q.errors import ConfigError, RunFolderError, StorageError
from d2ed2q.files import sha256_of
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.inspect_run import inspect_run
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings, TrainSettings
from d2ed2q.recipes.train import train
from d2ed2q.training import Trainer, read_log

Make = Callable[..., TrainSettings]


def test_the_same_settings_give_the_run_again_to_the_bit(trained: RunFolder, tmp_path: Path) -> None:
    run = quantize(QuantizeSettings(run=trained.path, out=tmp_path / "again"))
    for name in ("full_precision", "model", "codebooks"):
        assert sha256_of(getattr(run, name)) == sha256_of(getattr(trained, name)), name
    seconds = {"training_seconds": 0.0}
    assert dataclasses.replace(run.read_card(), **seconds) == dataclasses.replace(trained.read_card(), **seconds)
    assert json.loads(run.data.read_text()) == json.loads(trained.data.read_text())
    before, after = (settings_from(folder.config, TrainSettings) for folder in (trained, run))
    assert dataclasses.replace(after, out=before.out) == before

    def figures(folder: RunFolder) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder.metrics)]

    assert figures(run) == figures(trained)


def test_a_run_without_quantization_can_be_quantized_later(
    trained: RunFolder, tmp_path: Path, small_settings: Make
) -> None:
    plain = train(small_settings(tmp_path / "plain", quantize=False))
    run = quantize(QuantizeSettings(run=plain.path, out=tmp_path / "few"))
    assert sha256_of(run.model) == sha256_of(trained.model)
    assert settings_from(run.config, TrainSettings).quantize


def test_other_settings_reach_the_new_run_and_it_is_a_run_like_any_other(trained: RunFolder, tmp_path: Path) -> None:
    run = quantize(
        QuantizeSettings(
            run=trained.path,
            out=tmp_path / "new",
            bits=(3, 2, 2),
            codebook="linear",
            fractions=(0.5, 0.5),
            random=False,
        )
    )
    settings = settings_from(run.config, TrainSettings)
    assert (settings.bits, settings.codebook, settings.fractions, settings.random) == (
        (3, 2, 2),
        "linear",
        (0.5, 0.5),
        False,
    )
    assert settings.epochs_q == settings_from(trained.config, TrainSettings).epochs_q
    facts = inspect_run(run.path)
    assert [facts["learners"][name]["bits"] for name in ("meta", "base_1", "base_2")] == [3, 2, 2]
    assert facts["learners"]["base_1"]["distinct_per_channel"] <= 3
    result = evaluate(EvaluateSettings(run=run.path))
    assert result["full_precision"] is not None
    assert run.report.is_file()


def test_a_stopped_quantization_goes_on_to_the_bit(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(out: str, **changes: Any) -> QuantizeSettings:
        return QuantizeSettings(run=trained.path, out=tmp_path / out, **({"bits": (3,), "epochs_q": 2} | changes))

    whole = quantize(settings("whole"))
    close = Trainer._close_epoch

    def stop(self: Trainer, *rest: Any) -> None:
        close(self, *rest)
        if self.at.phase == 2:
            raise StorageError("stopped here")

    monkeypatch.setattr(Trainer, "_close_epoch", stop)
    with pytest.raises(StorageError):
        quantize(settings("cut"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"bits is \(2,\) here, but .* was begun with \(3,\)"):
        quantize(settings("cut", bits=(2,), resume=True))
    other = tmp_path / "other"
    shutil.copytree(trained.path, other)
    card = RunFolder(other).read_json(RunFolder(other).card)
    RunFolder(other).write_json(RunFolder(other).card, card | {"sha256": {"full_precision.safetensors": "0"}})
    with pytest.raises(RunFolderError, match="was not begun from"):
        quantize(dataclasses.replace(settings("cut", resume=True), run=other))
    run = quantize(QuantizeSettings(run=trained.path, out=tmp_path / "cut", resume=True))
    assert sha256_of(run.model) == sha256_of(whole.model)
    with pytest.raises(RunFolderError, match="nothing to resume"):
        quantize(settings("cut", resume=True))


def test_a_quantization_killed_before_its_first_checkpoint_starts_again(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StorageError("stopped here")

    monkeypatch.setattr(Trainer, "skip", stop)
    with pytest.raises(StorageError):
        quantize(QuantizeSettings(run=trained.path, out=tmp_path / "new"))
    monkeypatch.undo()
    run = quantize(QuantizeSettings(run=trained.path, out=tmp_path / "new", resume=True))
    assert sha256_of(run.model) == sha256_of(trained.model)
