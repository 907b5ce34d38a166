from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q import verbs
from d2ed2q.cli import main
from d2ed2q.data import make_phantom, write_phantom_dataset
from d2ed2q.recipes.run_folder import RunFolder

Run = Callable[..., tuple[int, str]]
SHORT = ["--backbone", "unet-xs", "--epochs", "1", "--epochs-q", "1", "--learners", "2", "--tta", "none"]
SHORT += ["--crop", "32", "32", "--batch-size", "2"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; gives the exit code and what went to stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # the parser's own way out
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_phantom_dataset(tmp_path / "data", n_train=4, n_test=2, size=(64, 64), seed=0)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    write_phantom_dataset(root / "data", n_train=4, n_test=2, size=(64, 64), seed=0)
    assert main(["train", "--data", str(root / "data"), "--out", str(root / "run"), *SHORT]) == 0
    return root


def refused(outcome: tuple[int, str], message: str) -> None:
    code, text = outcome
    assert code == 2, text
    assert message in text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text


def test_every_verb_from_training_to_prediction(finished: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", finished / "run", "--json", finished / "figures.json")[0] == 0
    figures = json.loads((finished / "figures.json").read_text())
    assert set(figures["scopes"]) == {"fov", "whole"}
    assert (finished / "run" / "report.html").is_file()
    images = finished / "data" / "test" / "images"
    assert run("predict", finished / "run", *sorted(images.iterdir()), "--out", finished / "masks")[0] == 0
    assert len(list((finished / "masks").glob("*_mask.png"))) == 2
    assert main(["inspect", str(finished / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["learners"]["meta"]["distinct_per_channel"] <= 15
    assert main(["inspect", str(finished / "run")]) == 0
    assert "one float learner" in capsys.readouterr().out
    assert main(["data", "check", str(finished / "data")]) == 0
    assert "6 pairs, each taken for a patient of its own; no problem found" in capsys.readouterr().out
    assert main(["data", "check", str(finished / "data"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "folder"


def test_help_and_version_answer_without_pytorch() -> None:
    script = "import sys; from d2ed2q.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for arguments in (["--help"], ["--version"]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    script = "import sys; from d2ed2q.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, "train", "--help"], check=True, capture_output=True, text=True)
    assert "--epochs-q" in done.stdout


def test_a_configuration_file_is_overridden_by_the_command_line(data: Path, tmp_path: Path, run: Run) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(f'data = "{data}"\nbackbone = "unet-xs"\nepochs = 1\nepochs_q = 1\nbits = [3]\ntta = "none"\n')
    code, text = run(
        "train", "--config", config, "--out", tmp_path / "run", "--bits", 2, "--learners", 2, "--no-random"
    )
    assert code == 0, text
    card = RunFolder(tmp_path / "run").read_card()
    assert card.bits == (2, 2, 2)
    assert card.backbone == "unet-xs"
    assert "random = false" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("splits", "following"),
    [
        ({"train": ["a"], "validation": ["b"], "test": ["c"]}, "evaluate {}"),
        ({"train": ["a"], "validation": ["b"], "test": [], "fold": ["c"]}, "evaluate {}"),
        ({"train": ["a"], "validation": ["b"], "test": []}, "evaluate {} --split validation"),
        ({"train": ["a", "b"], "validation": ["b"], "test": []}, "export {} -o model.d2q"),
        ({"train": ["a"], "validation": [], "test": []}, "export {} -o model.d2q"),
    ],
)
def test_what_follows_a_training_is_what_can_follow(
    splits: dict[str, list[str]], following: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    keys = ("dataset", "root", "classes", "patients", "sha256", "image_sha256")
    run.data.write_text(json.dumps({"splits": splits, **dict.fromkeys(keys)}))
    assert verbs._what_follows(run) == f"d2ed2q {following.format(tmp_path)}"


def test_unknown_verbs_and_options_are_refused(run: Run) -> None:
    refused(run("trian"), "did you mean 'train'")
    refused(run("data"), "data check")
    refused(run("frobnicate"), "--help")
    refused(run("data", "--no-such-option"), "data check")
    for words in (("--help",), ("data", "--help"), ("experiment", "-h")):
        assert run(*words) == (0, ""), words
    assert run("train", "--no-such-option")[0] == 2
    assert run("train")[0] == 2


def test_too_little_memory_is_one_sentence(
    data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("d2ed2q.recipes.train.validation_figures", fails)
    options = ("--backbone", "unet-xs", "--learners", "2", "--epochs", "1", "--crop", "32", "32", "--no-quantize")
    refused(run("train", "--data", data, "--out", tmp_path / "run", *options), "not enough memory; take smaller images")


def test_missing_data_is_named(tmp_path: Path, run: Run) -> None:
    refused(run("train", "--data", tmp_path / "none", "--out", tmp_path / "run"), "no dataset folder")
    (tmp_path / "empty").mkdir()
    refused(run("train", "--data", tmp_path / "empty", "--out", tmp_path / "run"), "is empty")
    assert run("data", "check", tmp_path / "empty")[0] == 2
    assert not (tmp_path / "run").exists()


def _first(data: Path, kind: str) -> Path:
    return sorted((data / kind).iterdir())[0]


def _orphan(data: Path) -> str:
    _first(data, "masks").unlink()
    return "has no mask"


def _other_size(data: Path) -> str:
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(_first(data, "masks"))
    return "20×10"


def _cmyk(data: Path) -> str:
    path = _first(data, "images")
    Image.fromarray(make_phantom(0, (64, 64)).image).convert("CMYK").save(path.with_suffix(".jpg"))
    path.unlink()
    return "CMYK"


def _sixteen_bit(data: Path) -> str:
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save(_first(data, "images"))
    return "16"


def _nan(data: Path) -> str:
    path = _first(data, "images")
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(path.with_suffix(".tif"))
    path.unlink()
    return "NaN"


def _all_background(data: Path) -> str:
    for path in (data / "masks").iterdir():
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    return "background"


def _truncated(data: Path) -> str:
    path = _first(data, "images")
    path.write_bytes(path.read_bytes()[:500])
    return path.name


def _odd_values(data: Path) -> str:
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(_first(data, "masks"))
    return "77"


@pytest.mark.parametrize(
    "spoil", [_orphan, _other_size, _cmyk, _sixteen_bit, _nan, _all_background, _truncated, _odd_values]
)
def test_bad_images_and_masks_are_refused(
    spoil: Callable[[Path], str], data: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    message = spoil(data)
    refused(run("train", "--data", data, "--out", tmp_path / "run", *SHORT), message)
    assert main(["data", "check", str(data)]) == 2
    assert message in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--backbone", "unet-q", "unet-"),
        ("--dataset", "drove", "drive"),
        ("--codebook", "geo", "geometric"),
        ("--bits", "1", "from 2 to 8"),
        ("--bits", "9", "from 2 to 8"),
        ("--seed", "-1", "seed"),
        ("--device", "tpu", "cpu or cuda"),
        ("--learners", "1", "at least 2"),
        ("--config", "none.toml", "cannot read the configuration"),
    ],
)
def test_bad_settings_are_refused(option: str, value: str, message: str, data: Path, tmp_path: Path, run: Run) -> None:
    refused(run("train", "--data", data, "--out", tmp_path / "run", option, value), message)
    assert not (tmp_path / "run").exists()


def test_wrong_types_on_the_command_line_are_refused(data: Path, tmp_path: Path, run: Run) -> None:
    for option, value in (("--epochs", "many"), ("--bits", "four"), ("--loss", "dice")):
        code, text = run("train", "--data", data, "--out", tmp_path / "run", option, value)
        assert code == 2
        assert "Traceback" not in text


def test_an_unknown_key_in_a_configuration_is_refused(data: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "c.toml").write_text("epoch = 1")
    refused(run("train", "--config", tmp_path / "c.toml", "--data", data, "--out", tmp_path / "run"), "'epochs'")


def test_existing_folders_are_refused(finished: Path, data: Path, run: Run) -> None:
    refused(run("train", "--data", data, "--out", finished / "run", *SHORT), "exists")
    refused(run("train", "--data", data, "--out", finished / "run", *SHORT, "--resume"), "nothing to resume")
    image = next((data / "test" / "images").iterdir())
    refused(run("predict", finished / "run", image, "--out", data), "exists")


def test_runs_that_cannot_be_used_are_refused(finished: Path, tmp_path: Path, run: Run, data: Path) -> None:
    image = next((data / "test" / "images").iterdir())
    for verb in (("evaluate",), ("inspect",)):
        refused(run(*verb, tmp_path / "none"), "no run folder")
        refused(run(*verb, tmp_path), "is no run folder: it has no config.toml")
    refused(run("predict", tmp_path / "none", image, "--out", tmp_path / "o"), "no run folder")
    shutil.copytree(finished / "run", tmp_path / "cut")
    model = tmp_path / "cut" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:200])
    refused(run("inspect", tmp_path / "cut"), "cut off")
    refused(run("predict", tmp_path / "cut", image, "--out", tmp_path / "o"), "cut off")
    shutil.copytree(finished / "run", tmp_path / "other")
    card = json.loads((tmp_path / "other" / "model.json").read_text())
    (tmp_path / "other" / "model.json").write_text(json.dumps(card | {"backbone": "unet-s"}))
    refused(run("evaluate", tmp_path / "other"), "another architecture")


def test_a_cut_off_checkpoint_is_refused_on_resume(data: Path, tmp_path: Path, run: Run) -> None:
    assert run("train", "--data", data, "--out", tmp_path / "run", *SHORT)[0] == 0
    (tmp_path / "run" / "model.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:300])
    refused(run("train", "--data", data, "--out", tmp_path / "run", "--resume"), "cut off")


@pytest.mark.parametrize("arguments", ["--help", "--version", "zoo"])
def test_output_that_nobody_reads_or_that_cannot_be_written(arguments: str) -> None:
    command = f"{sys.executable} -m d2ed2q {arguments}"
    ended = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
