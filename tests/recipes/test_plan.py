from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from d2ed2q.cli import main
from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import ConfigError, DataError, TrainingError
from d2ed2q.recipes import plan as plan_module
from d2ed2q.recipes.calibrate import Calibration, Costs, calibrate_apart
from d2ed2q.recipes.config import read_values, settings_from
from d2ed2q.recipes.machine import Machine
from d2ed2q.recipes.plan import make_plan
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.schedule import Cases, make_schedule, predicted_seconds
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import read_log

COSTS = Costs(
    fits=True,
    memory=10**9,
    memory_one=10**9,
    step=0.1,
    epoch=0.05,
    load=0.01,
    predict=0.1,
    validate=0.15,
    close=0.2,
    item_bytes=10**6,
    sample_bytes=10**7,
    parameters=1000,
    precision="fp32",
)


@pytest.mark.parametrize("seconds", [120, 600, 3600, 36000])
@pytest.mark.parametrize("pool", [4, 20, 900])
def test_a_schedule_fills_its_time(seconds: float, pool: int) -> None:
    cases = Cases(pool, pool, 0)
    made = make_schedule(COSTS, seconds, cases, 4, 4, 2)
    assert made.seconds <= seconds
    assert made.seconds >= 0.8 * seconds
    assert made.seconds == predicted_seconds(made, COSTS, cases, 4, 2)
    assert made.enough
    assert 0.65 < made.epochs / (made.epochs + 4 * made.epochs_q) < 0.85
    assert 1 <= made.validation < pool
    validations = made.epochs / made.validate_every * made.validation * COSTS.validate
    assert validations < 0.15 * made.epochs * made.steps * COSTS.step + 1


def test_validation_gives_way_where_it_is_expensive() -> None:
    slow = dataclasses.replace(COSTS, predict=2.0, validate=2.5, close=3.0)
    made = make_schedule(slow, 600.0, Cases(800, 800, 100), 4, 4, 2)
    assert made.tta == "none"
    assert made.validation < 20
    assert made.training == 800
    assert make_schedule(COSTS, 36000.0, Cases(800, 800, 100), 4, 4, 2).validation == 100


@pytest.mark.parametrize("seconds", [600, 3600])
def test_few_validation_images_do_not_tell_thresholds_alone(seconds: float) -> None:
    plain, more = (make_schedule(COSTS, seconds, Cases(20, 20, 0, also=also), 4, 4, 2) for also in (False, None))
    assert plain.also == 0
    assert more.also == more.training
    assert more.epochs <= plain.epochs
    assert 0.8 * seconds <= more.seconds <= seconds
    many = make_schedule(COSTS, seconds, Cases(800, 800, 100, also=None), 4, 4, 2)
    assert (many.also, many.validation >= 20) == (0, True)
    slow = dataclasses.replace(COSTS, predict=2.0, validate=2.5, close=3.0)
    assert make_schedule(slow, 600.0, Cases(800, 800, 100, also=None), 4, 4, 2).also == 0
    asked = make_schedule(COSTS, 6 * seconds, Cases(800, 800, 100, also=True), 4, 4, 2)
    assert (asked.also, asked.tta) == (800, "none" if seconds == 600 else "dihedral")
    assert asked.seconds <= 6 * seconds


def test_a_schedule_counts_the_images_that_are_trained_on() -> None:
    for cases, every in ((Cases(20, 20, 0, also=True), 20), (Cases(800, 800, 100, also=True), 900)):
        plain, made = (
            make_schedule(COSTS, 3600.0, dataclasses.replace(cases, all_train=trained), 4, 4, 2)
            for trained in (False, True)
        )
        assert made.training == plain.training + plain.validation == every
        assert made.also == plain.also == plain.training, "no image counts twice in a threshold"


def test_a_schedule_of_a_tiny_budget_is_not_enough() -> None:
    assert not make_schedule(COSTS, 15.0, Cases(20, 20, 0), 4, 4, 2).enough
    assert make_schedule(COSTS, 60.0, Cases(20, 20, 0), 4, 0, 2).enough


def test_a_schedule_without_quantization_leaves_a_later_one_enough() -> None:
    made = make_schedule(COSTS, 3600.0, Cases(20, 20, 0), 4, 0, 2)
    assert made.epochs_q == made.epochs // 12
    assert made.seconds == predicted_seconds(made, COSTS, Cases(20, 20, 0), 0, 2), "which is no part of this time"
    assert made.seconds >= 0.8 * 3600


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[TrainSettings]:
    """Costs that depend on the pixels of a batch, instead of measuring; gives what was asked for."""
    asked: list[TrainSettings] = []

    def measure(job: Calibration) -> Costs:
        asked.append(job.settings)
        pixels = math.prod(job.settings.resize or job.settings.crop) * job.settings.batch_size
        return dataclasses.replace(COSTS, step=pixels / 192**2 / 4 * 0.2, memory=10**8 + 3000 * pixels)

    monkeypatch.setattr(plan_module, "calibrate_apart", measure)
    return asked


def volumes(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    names = [f"case_{index}.nii.gz" for index in range(6)]
    for name in names:
        label = np.zeros((20, 24, 18), np.uint8)
        label[5:10, 5:12, 5:9], label[5:10, 13:18, 5:9] = 1, 2
        values = (rng.random(label.shape) * 100).astype(np.int16)
        for part, array in (("imagesTr", values), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / part / name)
    pairs = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "one", "2": "two"}
    description = {"training": pairs, "test": [], "labels": labels, "modality": {"0": "MRI"}, "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_a_plan_is_a_configuration_with_reasons(
    tmp_path: Path, phantoms: Path, measured: list[TrainSettings], kind: str
) -> None:
    data = phantoms if kind == "pictures" else volumes(tmp_path / "data")
    out = tmp_path / "plan.toml"
    assert main(["plan", "--data", str(data), "--budget", "10m", "--out", str(out), "--seed", "3"]) == 0
    lines = out.read_text().splitlines()
    values = read_values(out, TrainSettings)
    settings = TrainSettings(data=data, out=tmp_path / "run", **values)
    assert settings.time_limit == 600
    assert settings.fill_time
    assert settings.seed == 3
    assert len(settings.crop) == (2 if kind == "pictures" else 3)
    assert settings.epochs > settings.epochs_q > 1
    keys = [index for index, line in enumerate(lines) if re.match(r"\w+ = ", line)]
    assert {lines[index].split(" = ")[0] for index in keys} == set(values)
    assert all(lines[index - 1].startswith("# ") for index in keys)
    assert max(map(len, lines)) <= 120
    for word in ("task: ", "machine: ", "measured: ", "predicted: "):
        assert f"# {word}" in out.read_text()
    assert str(tmp_path) not in out.read_text()
    assert main(["plan", "--data", str(data), "--out", str(out)]) == 2  # what exists is not overwritten unasked
    assert main(["plan", "--data", str(data), "--out", str(out), "--overwrite", "--backbone", "unet-s"]) == 0
    assert "# given\nbackbone" in out.read_text()


def test_what_is_given_is_kept(phantoms: Path, tmp_path: Path, measured: list[TrainSettings]) -> None:
    given: dict[str, Any] = {"batch_size": 1, "epochs": 17, "loss": "bce_dice", "resize": (64, 64), "tta": "flips"}
    made = make_plan(TrainSettings(phantoms, tmp_path, budget="5m", validation_fraction=0.4, **given))
    assert {name: getattr(made.settings, name) for name in given} == given
    assert made.settings.validation_fraction == 0.4
    assert made.schedule.validation == 2
    assert made.reasons["epochs"] == "given"
    assert made.settings.dataset == "folder", "the layout that was found"
    assert made.settings.budget == "5m"
    assert made.settings.time_limit == 300
    assert not made.settings.fill_time
    assert made.settings.scale == 1.0


def test_a_given_rate_brings_its_own_for_retraining(
    phantoms: Path, tmp_path: Path, measured: list[TrainSettings]
) -> None:
    given: dict[str, Any] = {"lr": 1e-4, "crop": (48, 64)}
    made = make_plan(TrainSettings(phantoms, tmp_path, budget="5m", **given)).settings
    assert made.rate_q == pytest.approx(1e-4 / 3)
    assert made.tta == "flips", "crops that are not square are never turned in training"


def test_small_budgets_get_smaller_choices_and_large_ones_larger(tmp_path: Path, measured: list[TrainSettings]) -> None:
    write_phantom_dataset(tmp_path / "data", 4, 0, (256, 256), seed=0)
    crops = {}
    for budget in ("40s", "60s", "6m", "1h", "10h"):
        settings = make_plan(TrainSettings(tmp_path / "data", tmp_path, budget=budget)).settings
        crops[budget] = (settings.backbone, settings.crop[0])
    assert crops["6m"] == ("unet-s", 192)
    assert crops["1h"] == ("unet-deep", 192)
    assert crops["10h"] == ("unet-m", 256)
    assert crops["40s"][1] <= crops["60s"][1] < 192
    with pytest.raises(ConfigError, match=r"too small .* at least \d+ (s|min)"):
        make_plan(TrainSettings(tmp_path / "data", tmp_path, budget="14s"))


def test_little_memory_makes_smaller_batches(
    phantoms: Path, tmp_path: Path, measured: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = Machine("processor", 2, 260_000_000)
    monkeypatch.setattr(plan_module, "this_machine", lambda device: free)
    assert make_plan(TrainSettings(phantoms, tmp_path, budget="10m")).settings.batch_size < 4
    monkeypatch.setattr(plan_module, "this_machine", lambda device: dataclasses.replace(free, memory=1000))
    with pytest.raises(ConfigError, match="does not fit"):
        make_plan(TrainSettings(phantoms, tmp_path, budget="10m"))
    # A process that was killed is taken for one that had too little.
    monkeypatch.setattr(plan_module, "calibrate_apart", lambda job: None)
    with pytest.raises(ConfigError, match="does not fit"):
        make_plan(TrainSettings(phantoms, tmp_path, budget="10m"))


def test_the_measuring_process_tells_what_is_wrong(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(returncode: int, output: bytes = b"", error: bytes = b"") -> None:
        done = subprocess.CompletedProcess([], returncode, output, error)
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)

    job: Any = None
    ended(-9)
    assert calibrate_apart(job) is None
    ended(1, error=b"RuntimeError: not enough memory: you tried to allocate 1 bytes")
    assert calibrate_apart(job) is None
    ended(1, error=b"RuntimeError: something else")
    with pytest.raises(TrainingError, match="something else"):
        calibrate_apart(job)
    ended(0, output=b'noise\n{"error": "DataError", "message": "a.png has no mask"}\n')
    with pytest.raises(DataError, match=r"a\.png"):
        calibrate_apart(job)


def test_a_folder_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "plan.toml")]) == 2
    assert "no dataset folder" in capsys.readouterr().err
    assert not (tmp_path / "plan.toml").exists()
    assert main(["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--budget", "soon"]) == 2
    assert "1h30m" in capsys.readouterr().err


def test_a_training_with_a_budget_is_planned_runs_and_can_be_repeated(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "data", n_train=4, n_test=0, size=(64, 64), seed=0)
    run = train(
        TrainSettings(
            tmp_path / "data", tmp_path / "run", budget="150s", learners=2, epochs=4, epochs_q=2, backbone="unet-xs"
        )
    )
    assert run.card.is_file()
    settings = settings_from(run.config, TrainSettings)
    assert (settings.epochs, settings.epochs_q, settings.learners, settings.time_limit) == (4, 2, 2, 150)
    assert settings.crop == (64, 64)
    assert "# given\nepochs = 4" in run.plan.read_text()
    trained = [row for row in read_log(run.metrics) if row["kind"] == "train"]
    assert len(trained) == 12
    begun = time.monotonic()
    again = RunFolder(train(dataclasses.replace(settings, out=tmp_path / "again")).path)
    assert not again.plan.exists()  # a resolved configuration is not planned again
    assert again.model.read_bytes() == run.model.read_bytes()
    assert time.monotonic() - begun < 150


def test_validation_images_that_do_not_fit_are_left_out(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = dataclasses.replace(COSTS, memory=10**8, sample_bytes=10**9, item_bytes=10**6)
    monkeypatch.setattr(plan_module, "calibrate_apart", lambda job: costs)
    cases = Cases(800, 800, 100)
    assert cases.wanted == 100
    assert dataclasses.replace(cases, most=7).wanted == 7
    for memory, gpu in ((2 * 10**9, None), (2 * 10**9, "accelerator")):
        machine = Machine("processor", 2, memory, gpu, 10**11 if gpu else 0)
        monkeypatch.setattr(plan_module, "this_machine", lambda device, machine=machine: machine)
        assert make_plan(TrainSettings(phantoms, tmp_path, budget="10m")).schedule.validation == 1
    tight = Machine("processor", 2, 10**9, "accelerator", 10**11)  # the images do not fit, whatever the accelerator has
    monkeypatch.setattr(plan_module, "this_machine", lambda device: tight)
    with pytest.raises(ConfigError, match="hold out fewer images"):
        make_plan(TrainSettings(phantoms, tmp_path, budget="10m"))
