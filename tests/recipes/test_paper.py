"""The paper's own commands, from the repository root, with few epochs and small images."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2ed2q.data import make_phantom
from d2ed2q.errors import CheckpointError, ConfigError
from d2ed2q.recipes.paper import evaluate_paper, train_paper

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in DRIVE's layout: three to train on, one to test on."""
    root = tmp_path_factory.mktemp("dataset") / "DRIVE"
    for split, numbers in (("training", (21, 22, 23)), ("test", (1,))):
        for folder in ("images", "1st_manual", "mask"):
            (root / split / folder).mkdir(parents=True)
        for number in numbers:
            phantom = make_phantom(number, (64, 64))
            Image.fromarray(phantom.image).save(root / split / "images" / f"{number:02}_{split}.tif")
            for folder, name, mask in (
                ("1st_manual", f"{number:02}_manual1.gif", phantom.mask),
                ("mask", f"{number:02}_{split}_mask.gif", phantom.roi),
            ):
                Image.fromarray((mask > 0).astype("uint8") * 255).save(root / split / folder / name)
    return root


def command(script: str, arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Waiting threads sleep: two that spin beside another program take many times as long.
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments.split()],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "weights", "names"),
    [
        ("UNet-XS", 126e3, ("meta.encoder.0.0.weight", "base.2.decoder.1.0.weight")),
        pytest.param(
            "CE-Net",
            119e6,
            ("meta.encoder.conv1.weight", "base.2.encoder.layer4.0.conv1.weight"),
            marks=pytest.mark.integration,  # 119 million weights are quantized in four steps: minutes
        ),
    ],
)
def test_the_documented_commands_work_as_written(
    backbone: str,
    weights: float,
    names: tuple[str, str],
    drive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "dataset").symlink_to(drive.parent)  # their default place of the data
    options = f"--backbone {backbone} --dataset DRIVE --alpha 0.005 --epoch 1 --epochQ 1 --batchsize 2 --size 64"
    trained = command("train.py", options, tmp_path)
    assert trained.returncode == 0, trained.stderr
    state = torch.load(tmp_path / "D2ED2Q_DRIVE.pth", weights_only=True)
    assert sum(value.numel() for name, value in state.items() if name.endswith("weight")) > weights
    for name in names:
        assert len(torch.unique(state[name])) <= 32, "five bits"
    monkeypatch.chdir(tmp_path)
    named = [] if backbone == "CE-Net" else ["--backbone", backbone]  # as documented: it is the default
    monkeypatch.setattr(sys, "argv", ["eval.py", "--model-path", "D2ED2Q_DRIVE.pth", "--size", "64", *named])
    runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    scored = capsys.readouterr().out
    assert "ensemble" in scored
    assert "inside the region of interest" in scored


def test_other_backbones_and_places_of_the_data(drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = f"--image-path {drive} --backbone unet-xs --size 64 --n-models 2".split()
    path = train_paper([*place, "--epoch", "1", "--epochQ", "1", "--Q", "3", "--batchsize", "2"])
    assert path == Path("D2ED2Q_DRIVE.pth")
    assert len(torch.unique(torch.load(path, weights_only=True)["base.0.encoder.1.0.weight"])) <= 8
    result = evaluate_paper(["--model-path", str(path), *place])
    assert set(result["scopes"]) == {"fov", "whole"}
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut off"):
        evaluate_paper(["--model-path", str(path), *place])
    torch.save({"model": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match="plain state dict"):
        evaluate_paper(["--model-path", str(path), *place])
    torch.save({"x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="another architecture"):
        evaluate_paper(["--model-path", str(path), *place])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no dataset folder dataset/DRIVE; .* --image-path"):
        train_paper([])
    with pytest.raises(CheckpointError, match="no weights file"):
        evaluate_paper(["--model-path", "D2ED2Q_DRIVE.pth"])
    with pytest.raises(ConfigError, match="invalid float"):
        train_paper(["--alpha", "much"])


def test_scripts_end_with_code_two_and_one_line(tmp_path: Path) -> None:
    done = command("train.py", "--dataset DRIVE", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--image-path" in done.stderr
