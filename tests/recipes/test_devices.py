"""Several processes train one model: two on the CPU, that talk by gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import ConfigError
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import read_log

Make = Callable[..., TrainSettings]

NETWORK = """
from torch import nn


def make(in_channels, n_classes):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, n_classes, 3, padding=1)
    )
"""


def start(folder: Path, data: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    small = "--epochs 4 --epochs-q 1 --crop 48 48 --batch-size 4 --tta none --validate-every 2 --precision fp32"
    command = [sys.executable, "-m", "d2ed2q", "train", "--data", str(data), "--out", str(out), *small.split()]
    command += ["--device", "cpu", *options]
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


def wait_for_checkpoint(run: RunFolder, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not run.checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


def losses(run: Path) -> list[float]:
    return [row["segmentation"] for row in read_log(run / "metrics.jsonl") if row["kind"] == "train"]


def test_two_processes_train_as_one_does(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "mynets.py").write_text(NETWORK)
    plain = ("--learners", "0", "--backbone", "mynets:make", "--taps", "2", "--lr", "3e-3")
    finish(start(tmp_path, phantoms, tmp_path / "one", *plain))
    finish(start(tmp_path, phantoms, tmp_path / "two", *plain, "--devices", "2"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    # Of each process's part the mean over the pixels that count is taken, so the means differ a little.
    assert two == pytest.approx(one, rel=0.02)
    assert two != one
    steps = [[row["step"] for row in read_log(tmp_path / run / "metrics.jsonl")] for run in ("one", "two")]
    assert steps[0] == steps[1], "one log, of one process"


def test_one_checkpoint_for_any_number_of_processes(phantoms: Path, tmp_path: Path) -> None:
    small = ("--backbone", "unet-xs", "--learners", "2", "--checkpoint-seconds", "0")
    run = RunFolder(tmp_path / "run")
    process = start(tmp_path, phantoms, run.path, *small, "--devices", "2")
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGINT)
    said = finish(process, 130)
    assert said.count("go on with: d2ed2q train") == 1, said
    assert said.strip().endswith("--devices 2 --resume"), said
    assert "Traceback" not in said
    other = tmp_path / "other"
    write_phantom_dataset(other, n_train=5, n_test=3, size=(96, 96), seed=2)
    said = finish(start(tmp_path, other, run.path, "--resume", "--devices", "2"), 2)
    assert said.count("\n") == 1, said
    assert "are not those that" in said
    begun = len(losses(run.path))
    finish(start(tmp_path, phantoms, run.path, "--resume"))
    assert len(losses(run.path)) == 4 + 4 > begun
    for weight in quantizable_weights(run.load()):
        rows = weight.parameter.detach().movedim(weight.channel_axis, 0)
        assert max(len(torch.unique(row)) for row in rows) <= 15


def test_a_process_that_is_killed_is_told(phantoms: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    small = ("--backbone", "unet-xs", "--learners", "2", "--checkpoint-seconds", "0")
    process = start(tmp_path, phantoms, run.path, *small, "--devices", "2")
    wait_for_checkpoint(run, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = (int(child) for child in children if "train" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(second, signal.SIGKILL)
    said = finish(process, 2)
    assert said.endswith("a process that trains with this one is gone; start all of them with --resume\n"), said
    assert "Traceback" not in said
    finish(start(tmp_path, phantoms, run.path, "--resume", "--devices", "2"))


def test_a_full_disk_ends_all_processes_with_one_message(phantoms: Path, tmp_path: Path) -> None:
    small = "--backbone unet-xs --learners 2 --epochs 4 --no-quantize --crop 48 48 --batch-size 4 --tta none"
    words = f"-m d2ed2q train --data {phantoms} --out {tmp_path / 'run'} {small} --checkpoint-seconds 0 --devices 2"
    command = ["bash", "-c", f"ulimit -f 100; exec {sys.executable} {words} --device cpu"]  # of 1024 bytes each
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.count("the disk is full") == 1, ended.stderr
    assert "no checkpoint was written yet; --resume begins anew" in ended.stderr


def test_bad_input_is_said_once(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").touch()
    said = finish(start(tmp_path, phantoms, tmp_path / "run", "--devices", "2"), 2)
    assert said.count("\n") == 1
    assert "exists" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, "at least 1"),
        ({"nodes": 3}, "multiple of devices × nodes = 3"),
        ({"devices": 2, "budget": "10m"}, "planned for one process"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path, small_settings: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_settings(tmp_path / "run", **changes)
