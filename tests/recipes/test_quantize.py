from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2ed2q.cli import main
from d2ed2q.data import write_png
from d2ed2q.errors import ConfigError, RunFolderError, StorageError
from d2ed2q.files import sha256_of
from d2ed2q.recipes.config import settings_from, write_settings
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.inspect_run import inspect_run
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import Trainer, read_log

Make = Callable[..., TrainSettings]


def test_the_same_settings_give_the_run_again_to_the_bit(trained: RunFolder, tmp_path: Path) -> None:
    run = quantize(QuantizeSettings(run=trained.path, out=tmp_path / "again"))
    for name in ("full_precision", "model", "codebooks"):
        assert sha256_of(getattr(run, name)) == sha256_of(getattr(trained, name)), name
    new, old = run.read_card(), trained.read_card()
    assert dataclasses.replace(new, training_seconds=old.training_seconds) == old
    assert new.training_seconds > 0
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
    def settings(out: str, bits: int = 3, resume: bool = False) -> QuantizeSettings:
        return QuantizeSettings(run=trained.path, out=tmp_path / out, epochs_q=2, bits=(bits,), resume=resume)

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
        quantize(settings("cut", 2, resume=True))
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


Outcome = tuple[int, str]


@pytest.fixture
def command(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``d2ed2q quantize RUN``; gives the exit code and what went to stderr."""

    def call(*arguments: object, run: Path | None = None) -> Outcome:
        try:
            code = main(["quantize", str(run or trained.path), *map(str, arguments)])
        except SystemExit as stop:  # the parser's own way out
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return call


def refused(outcome: Outcome, message: str) -> None:
    code, text = outcome
    assert code == 2, text
    assert message in text
    assert len(text.strip().splitlines()) == 1, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "NEW", "--bits", "4", "3"], "or 3 (meta learner, then 2 base learners), got 2"),
        (["--out", "NEW", "--bits", "9"], "from 2 to 8"),
        (["--out", "NEW", "--bits", "4", "1", "4"], "from 2 to 8"),
        (["--out", "NEW", "--codebook", "lineal"], "unknown codebook 'lineal'"),
        (["--out", "NEW", "--fractions", "0.5", "0.4"], "add up to 1"),
        (["--out", "NEW", "--lr-q", "-1"], "lr_q"),
        (["--out", "NEW", "--epochs-q", "0"], "epochs_q"),
        (["--out", "NEW", "--data", "nowhere"], "pass their folder with --data"),
        (["--out", "NEW", "--resume"], "no run to resume"),
        (["--out", "NEW", "--codebooks", "linear", "pow2"], "--codebook"),
        ([], "--out NEW"),
        (["--search", "--resume"], "nothing to resume without --out"),
        (["--search", "--bits", "4"], "leave out --bits"),
        (["--search", "--codebooks", "linear", "lineal"], "unknown codebook 'lineal'"),
        (["--search", "--tolerance", "-0.1"], "tolerance must be 0 or more"),
        (["--search", "--tolerance", "nan"], "tolerance must be 0 or more"),
        (["--search", "--images", "0"], "images must be at least 1"),
        (["--search", "--batches", "0"], "batches must be at least 1"),
        (["--search", "--device", "tpu"], "cpu or cuda"),
    ],
)
def test_bad_settings_are_refused(
    arguments: list[str], message: str, command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command(*arguments), message)
    assert not (tmp_path / "NEW").exists()


def test_runs_and_folders_that_cannot_be_used_are_refused(
    trained: RunFolder, command: Callable[..., Outcome], tmp_path: Path
) -> None:
    refused(command("--out", tmp_path / "new", run=tmp_path / "none"), "no run folder")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained.path, unfinished)
    (unfinished / "model.json").unlink()
    refused(command("--out", tmp_path / "new", run=unfinished), "has not finished")
    refused(command("--search", run=unfinished), "has not finished")
    changed = tmp_path / "changed"
    shutil.copytree(trained.path, changed)
    weights = bytearray((changed / "full_precision.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "full_precision.safetensors").write_bytes(weights)
    refused(command("--out", tmp_path / "new", run=changed), "SHA-256")
    (changed / "full_precision.safetensors").unlink()
    refused(command("--search", run=changed), "no weights file")
    refused(command("--out", trained.path), "exists")
    refused(command("--search", "--out", trained.path), "exists")
    refused(command("--out", trained.path, "--resume"), "nothing to resume")
    assert not (tmp_path / "new").exists()


def test_other_images_are_refused_and_moved_ones_are_found(
    command: Callable[..., Outcome], tmp_path: Path, phantoms: Path, trained: RunFolder
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(phantoms, moved)
    assert command("--data", moved, "--out", tmp_path / "new")[0] == 0
    assert sha256_of(tmp_path / "new" / "model.safetensors") == sha256_of(trained.model)
    assert settings_from(tmp_path / "new" / "config.toml", TrainSettings).data == moved
    first = sorted((moved / "images").iterdir())[0]
    write_png(first, np.zeros((96, 96, 3), np.uint8))
    for rest in (["--out", tmp_path / "other"], ["--search"]):
        refused(command("--data", moved, *rest), "is not the one this run was trained on")
    for folder in ("images", "masks", "roi"):
        (moved / folder / first.name).unlink()
    refused(command("--data", moved, "--out", tmp_path / "other"), "lacks the")


def test_switches_can_be_left_to_the_run(command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert command("--out", tmp_path / "plain", "--no-random", "--fractions", "1")[0] == 0
    assert not settings_from(tmp_path / "plain" / "config.toml", TrainSettings).random
    assert command("--out", tmp_path / "drawn", "--random", "True", "--fractions", "1", run=tmp_path / "plain")[0] == 0
    assert settings_from(tmp_path / "drawn" / "config.toml", TrainSettings).random
    for given, expected in (([], False), (["--random"], True)):
        out = tmp_path / f"again_{expected}"
        assert command("--out", out, *given, run=tmp_path / "plain")[0] == 0
        assert settings_from(out / "config.toml", TrainSettings).random is expected


def test_train_goes_on_with_a_quantization_too(
    trained: RunFolder, tmp_path: Path, small_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StorageError("stopped here")

    monkeypatch.setattr(Trainer, "run", stop)
    with pytest.raises(StorageError):
        quantize(QuantizeSettings(run=trained.path, out=tmp_path / "new"))
    monkeypatch.undo()
    run = train(small_settings(tmp_path / "new", resume=True))
    assert sha256_of(run.model) == sha256_of(trained.model)
    phases = [row["phase"] for row in read_log(run.metrics) if row["kind"] == "phase"]
    assert phases == ["full_precision", *(f"quantization_{step}" for step in range(1, 5))]


def test_a_run_that_its_time_limit_shortened_is_quantized_from_where_it_ended(
    trained: RunFolder, tmp_path: Path
) -> None:
    short = RunFolder(tmp_path / "short")
    shutil.copytree(trained.path, short.path)
    planned = settings_from(short.config, TrainSettings)
    assert planned.epochs == 3
    limited = dataclasses.replace(planned, epochs=30, budget="60m", time_limit=3600.0, fill_time=True)
    write_settings(short.config, limited)  # of 30 epochs, three were trained
    run = quantize(QuantizeSettings(run=short.path, out=tmp_path / "again"))
    assert sha256_of(run.model) == sha256_of(trained.model)
    rows = [row for row in read_log(run.metrics) if row["kind"] == "train"]
    assert [row["epoch"] for row in rows] == [
        row["epoch"] for row in read_log(trained.metrics) if row["kind"] == "train"
    ]  # and the budget of the whole training is not filled with retraining
