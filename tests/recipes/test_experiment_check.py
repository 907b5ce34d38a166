"""What keeps a table from showing a result of something else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.experiment_check import read_results, require_as_described
from d2ed2q.recipes.experiment_file import read_experiment
from d2ed2q.recipes.experiment_result import kept_settings, result_path

DESCRIBED: dict[str, Any] = {
    "epochs": 7,
    "hue": 5.0,
    "experiment": {
        "data": "somewhere",
        "seeds": [0, 1],
        "teacher": "other",
        "others": [{"name": "elsewhere", "data": "there", "scale": 0.5, "split": "all"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment with two results, and one of another set."""
    (tmp_path / "other.toml").write_text('[experiment]\ndata = "somewhere"\n')
    (tmp_path / "one.toml").write_text(tomli_w.dumps(DESCRIBED))
    for name, seed in (("one", 0), ("one", 1), ("elsewhere", 0)):
        keep(tmp_path, name, seed)
    return tmp_path


def keep(folder: Path, name: str, seed: int, **changes: Any) -> Path:
    """Writes a result as it is after a run."""
    experiment = read_experiment(folder, "one")
    scored = {"scale": 0.5, "by": "d2ed2q evaluate RUN --data OTHER --out OUT --scale 0.5 --split all"}
    result = {
        "name": name,
        "experiment": "one",
        "seed": seed,
        "teacher": "other",
        "scored_by": scored["by"] if name == "elsewhere" else "d2ed2q evaluate RUN --data DATA",
        "settings": kept_settings(experiment.training(seed, Path("data"), Path("run"))),
        "sha256": {"a": "1", "b": "2"},
        "scored_sha256": {"b": "3"} if name == "elsewhere" else {"b": "2"},
        **dict.fromkeys(("prediction", "bits", "few_bit", "full_precision", "images", "split")),
    }
    path = result_path(folder, name, seed)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result | changes))
    return path


def test_results_are_read_by_name_and_seed(folder: Path) -> None:
    found = read_results(folder)
    assert {name: [result["seed"] for result in seeds] for name, seeds in found.items()} == {
        "elsewhere": [0],
        "one": [0, 1],
    }


def test_what_a_killed_process_was_writing_is_no_result(folder: Path) -> None:
    whole = result_path(folder, "one", 1)
    (whole.parent / ".one-seed1-abcdefgh.json").write_bytes(whole.read_bytes())
    (whole.parent / ".one-seed1-ijklmnop.json").write_bytes(b"")
    assert len(read_results(folder)["one"]) == 2


def test_a_copy_is_no_further_seed(folder: Path) -> None:
    whole = result_path(folder, "one", 1)
    copy = whole.with_name("one-seed1 (copy).json")
    copy.write_bytes(whole.read_bytes())
    with pytest.raises(ConfigError, match=rf"{re.escape(str(copy))} is the result that belongs to {whole}"):
        read_results(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(hue=6.0), r"made with hue = 5.0, but the file has 6.0 now; remove .* to run it anew"),
        (lambda d: d.update(epochs=8), r"made with epochs = 7, but the file has 8 now"),
        (lambda d: d.update(standardize=True), r"made with standardize = False"),
        (lambda d: d["experiment"].pop("teacher"), r"made with teacher = other, but the file has None now"),
        (lambda d: d["experiment"].update(seeds=[0]), r"has no seed 1"),
        (lambda d: d["experiment"].update(others=[]), r"has no result elsewhere"),
        (lambda d: d["experiment"]["others"][0].update(scale=0.25), r"scored_by = .* --scale 0.5 .* --scale 0.25 "),
        (lambda d: d["experiment"]["others"][0].pop("split"), r"scored_by = .* --split all, but"),
    ],
)
def test_a_file_that_says_something_else_now_is_noticed(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    described = json.loads(json.dumps(DESCRIBED))
    change(described)
    (folder / "one.toml").write_text(tomli_w.dumps(described))
    with pytest.raises(ConfigError, match=message):
        read_results(folder)


def test_an_older_result_is_compared_as_far_as_it_tells(folder: Path) -> None:
    experiment, path = read_experiment(folder, "one"), result_path(folder, "one", 0)
    told = {"name": "one", "seed": 0, "epochs": [7, 100]}
    epochs_q = experiment.training(0, Path("data"), Path("run")).epochs_q
    require_as_described(experiment, told | {"epochs": [7, epochs_q]}, path)
    with pytest.raises(ConfigError, match=r"made with epochs = \[8, "):
        require_as_described(experiment, told | {"epochs": [8, epochs_q]}, path)
    with pytest.raises(ConfigError, match="made with codebook = pow2"):
        require_as_described(experiment, {"name": "one", "seed": 0, "codebook": "pow2"}, path)


def test_other_images_are_noticed(folder: Path) -> None:
    second = keep(folder, "one", 1, scored_sha256={"b": "4"})
    with pytest.raises(ConfigError, match=f"{second} and .* have other images: b of somewhere, or its mask, differs"):
        read_results(folder)
    keep(folder, "one", 1, sha256={"a": "5", "b": "2"})
    with pytest.raises(ConfigError, match=f"{second} and .* have other images: a of somewhere"):
        read_results(folder)
    keep(folder, "one", 1, scored_sha256=None)  # what was not recorded is not compared
    assert len(read_results(folder)["one"]) == 2
