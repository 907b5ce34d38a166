from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import tomli_w
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import ConfigError, DataError
from d2ed2q.recipes.config import read_values, write_values
from d2ed2q.recipes.sweep import sweep
from d2ed2q.recipes.sweep_journal import open_journal
from d2ed2q.recipes.sweep_settings import SweepSettings
from d2ed2q.recipes.sweep_space import Dimension, read_space
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import read_log


@pytest.fixture
def files(tmp_path: Path, small_values: dict[str, Any]) -> dict[str, Path]:
    """A search for two settings around a training of a second."""
    space, shared = tmp_path / "space.toml", tmp_path / "shared.toml"
    space.write_text("lr = {low = 1e-3, high = 3e-2, log = true}\ncrop = [[32, 32], [48, 48]]\n")
    write_values(shared, small_values | {"epochs": 2, "validate_every": 1, "quantize": False})
    return {"space": space, "train": shared, "out": tmp_path / "search"}


def test_a_search_finds_the_best_of_its_trials(
    files: dict[str, Path], phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(files["space"]), "--train", str(files["train"]), "--data", str(phantoms)]
    command += ["--out", str(files["out"]), "--trials", "3", "--no-prune"]
    assert main(command) == 0
    assert "3 complete" in capsys.readouterr().out
    result = json.loads((files["out"] / "sweep.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 3
    assert len({trial["settings"]["lr"] for trial in result["trials"]}) == 3
    best = max(result["trials"], key=lambda trial: trial["value"])
    assert result["best"] == best["number"]
    assert (files["out"] / "sweep.png").stat().st_size > 10_000
    kept = read_values(files["out"] / "best.toml", TrainSettings)
    assert kept["lr"] == best["settings"]["lr"]
    assert list(kept["crop"]) == best["settings"]["crop"]
    assert "data" not in kept
    # It has all its trials: nothing is left to do; with more of them it goes on.
    assert main(command) == 0
    assert len(json.loads((files["out"] / "sweep.json").read_text())["trials"]) == 3
    assert main([*command[:-2], "4", "--no-prune"]) == 0
    assert len(json.loads((files["out"] / "sweep.json").read_text())["trials"]) == 4


def test_two_workers_share_a_search_and_one_is_killed(files: dict[str, Path], phantoms: Path) -> None:
    write_values(files["train"], read_values(files["train"], TrainSettings) | {"epochs": 6, "checkpoint_seconds": 0.0})
    command = [sys.executable, "-m", "d2ed2q", "sweep", str(files["space"]), "--train", str(files["train"])]
    command += ["--data", str(phantoms), "--out", str(files["out"]), "--trials", "4", "--no-prune"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    victim = start()
    until = time.monotonic() + 120
    while not list(files["out"].glob("trial-*/checkpoint.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    other = start()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    _, said = other.communicate(timeout=200)
    assert other.returncode == 0, said
    result = json.loads((files["out"] / "sweep.json").read_text())
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 4
    assert len({trial["settings"]["lr"] for trial in result["trials"]}) == 4


@pytest.mark.parametrize(("prune", "state"), [(True, "pruned"), (False, "complete")])
def test_a_poor_trial_is_given_up(files: dict[str, Path], phantoms: Path, prune: bool, state: str) -> None:
    files["space"].write_text("lr = [1e-2, 1e-9]\n")
    # Five trials better than any that can be: the sixth is poor from its first validation on.
    shutil.copytree(files["train"].parent, files["out"] / "trial-0000", ignore=shutil.ignore_patterns("search"))
    (files["out"] / "trial-0000" / "shared.toml").rename(files["out"] / "trial-0000" / "config.toml")
    study = optuna.create_study(
        storage=open_journal(files["out"]),
        study_name="d2ed2q",
        direction="maximize",
    )
    for _ in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                params={"lr": "0.01"},
                distributions={"lr": optuna.distributions.CategoricalDistribution(["0.01", "1e-09"])},
                value=2.0,
                intermediate_values={1: 2.0, 2: 2.0},
            )
        )
    result = sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=6, prune=prune))
    assert result["trials"][5]["state"] == state
    assert (result["trials"][5]["value"] is None) == prune
    assert result["best"] == 0


def test_a_trial_is_worth_what_its_finished_weights_are(files: dict[str, Path], phantoms: Path) -> None:
    files["space"].write_text("lr = [1e-2, 3e-2]\n")
    shared = read_values(files["train"], TrainSettings) | {"epochs": 4}
    for keep in ("last", "best"):
        write_values(files["train"], shared | {"keep": keep})
        out = files["out"].with_name(keep)
        result = sweep(SweepSettings(files["space"], phantoms, out, files["train"], trials=2, prune=False))
        for trial in result["trials"]:
            rows = [row for row in read_log(out / trial["folder"] / "metrics.jsonl") if row["kind"] == "validation"]
            row = rows[-1] if keep == "last" else max(rows, key=lambda row: row["score"])
            assert trial["value"] == row["dice"]


def test_a_trial_whose_settings_cannot_be_is_left_out(files: dict[str, Path], phantoms: Path) -> None:
    files["space"].write_text("batch_size = [2, 0]\n")
    result = sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=8, prune=False))
    states = {(trial["settings"]["batch_size"], trial["state"]) for trial in result["trials"]}
    assert states == {(2, "complete"), (0, "fail")}
    failed = [trial for trial in result["trials"] if trial["state"] == "fail"]
    assert all("batch_size must be at least 1" in trial["error"] for trial in failed)
    files["space"].write_text("batch_size = [0, -1]\n")
    for trials, name in ((9, "second"), (2, "third")):
        with pytest.raises(ConfigError, match=r"no trial has succeeded.*batch_size must be at least 1"):
            sweep(SweepSettings(files["space"], phantoms, files["out"].with_name(name), files["train"], trials=trials))


def test_a_trial_that_its_images_do_not_allow_is_left_out(
    files: dict[str, Path], phantoms: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantoms, tmp_path / "sizes")
    for path in (tmp_path / "sizes").glob("*/*.*"):
        if path.stem.endswith(("1", "3")):
            with Image.open(path) as image:
                image.crop((0, 0, 80, 96)).save(path)
    files["space"].write_text("crop = [[0, 0], [32, 32]]\n")  # whole images of several sizes make no batch
    result = sweep(
        SweepSettings(files["space"], tmp_path / "sizes", files["out"], files["train"], trials=6, prune=False)
    )
    states = {(trial["settings"]["crop"][0], trial["state"]) for trial in result["trials"]}
    assert states == {(32, "complete"), (0, "fail")}


def _drawn(folder: Path) -> list[dict[str, Any]]:
    return [trial["settings"] for trial in json.loads((folder / "sweep.json").read_text())["trials"]]


def test_what_is_drawn_is_the_same_in_one_go_or_in_several(
    files: dict[str, Path], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("d2ed2q.recipes.sweep.train", no_memory)
    drawn = []
    for name, counts in (("once", (4,)), ("twice", (1, 4))):
        for trials in counts:
            with pytest.raises(ConfigError, match=r"the last one: there is not enough memory"):
                sweep(SweepSettings(files["space"], phantoms, files["out"].with_name(name), files["train"], trials))
        drawn.append(_drawn(files["out"].with_name(name)))
    assert drawn[0] == drawn[1]
    assert len({trial["lr"] for trial in drawn[0]}) == 4


def test_a_trial_that_kills_its_workers_is_left_out(
    files: dict[str, Path], phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def train_or_die(settings: TrainSettings, *rest: Any) -> None:
        if settings.out.name == "trial-0000":
            raise Killed
        train(settings, *rest)

    monkeypatch.setattr("d2ed2q.recipes.sweep.train", train_or_die)
    settings = SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=2)
    for _ in range(3):
        with pytest.raises(Killed):
            sweep(settings)
    result = sweep(settings)
    assert [trial["state"] for trial in result["trials"]] == ["fail", "complete"]
    assert "3 workers were killed at step 0" in result["trials"][0]["error"]


def test_several_classes_have_no_auc_to_search_for(files: dict[str, Path], tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "binary", n_train=4, n_test=1, size=(64, 64), seed=0)
    for path in (tmp_path / "binary").glob("**/masks/*"):
        mask = np.array(Image.open(path)) // 255
        mask[:8, :8] = 2
        Image.fromarray(mask).save(path)
    with pytest.raises(ConfigError, match="several classes have no AUC; use --metric dice"):
        sweep(SweepSettings(files["space"], tmp_path / "binary", files["out"], files["train"], metric="auc"))
    assert not (files["out"] / "journal.log").exists()


def test_a_trial_has_one_device(files: dict[str, Path], phantoms: Path) -> None:
    with files["train"].open("a") as file:
        file.write("devices = 2\n")
    with pytest.raises(ConfigError, match=r"shared\.toml: a trial of a search has one device"):
        sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=1))


def test_a_space_is_read(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        tomli_w.dumps({"learners": {"low": 2, "high": 5}, "alpha": {"low": 0.01, "high": 1.0, "log": True}})
    )
    assert read_space(path) == (
        Dimension("learners", (), 2, 5, False, True),
        Dimension("alpha", (), 0.01, 1.0, True, False),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no setting"),
        ("lrr = [1, 2]", "did you mean 'lr'"),
        ('lr = ["high", "low"]', "wrong type"),
        ("lr = [0.1]", "two choices"),
        ("lr = {low = 1, high = 0.1}", "cannot go from 1 to 0.1"),
        ("lr = {low = 0, high = 0.1, log = true}", "cannot go from 0"),
        ("lr = {from = 0, to = 0.1}", "list of choices, or a range"),
        ("lr = 3", "list of choices, or a range"),
        ('data = ["a", "b"]', "same for all trials"),
        ("seed = [0, 1]", "same for all trials"),
        ("epochs = [1, 2]", "same for all trials"),
        ("validation_fraction = {low = 0.1, high = 0.5}", "same for all trials"),
        ('lr = {low = 0.1, high = 1, log = "no"}', "log of lr must be true or false"),
    ],
)
def test_a_wrong_space_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(tmp_path / "space.toml")


def test_a_search_keeps_to_its_space(files: dict[str, Path], phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        sweep(SweepSettings(files["space"], tmp_path / "nothing", files["out"], files["train"], trials=1))
    sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=1))
    write_phantom_dataset(tmp_path / "others", n_train=5, n_test=3, size=(96, 96), seed=2)
    with pytest.raises(ConfigError, match="other images"):
        sweep(SweepSettings(files["space"], tmp_path / "others", files["out"], files["train"], trials=2))
    files["space"].write_text("lr = [1e-2, 1e-3]\n")
    with pytest.raises(ConfigError, match="another space"):
        sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=1))
    write_values(files["train"], {"data": "x"})
    with pytest.raises(ConfigError, match="data is not for all trials"):
        sweep(SweepSettings(files["space"], phantoms, files["out"], files["train"], trials=1))
