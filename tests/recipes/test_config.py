from __future__ import annotations

from pathlib import Path

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import read_values, settings_from, write_settings
from d2ed2q.recipes.experiment_file import find_experiments
from d2ed2q.recipes.train_settings import TrainSettings


def test_settings_survive_the_file(tmp_path: Path) -> None:
    settings = TrainSettings(
        data=Path("a b"),
        out=Path("o"),
        bits=(2, 3, 4, 5),
        alpha=0.3,
        crop=(0, 0),
        resize=(64, 32),
        random=False,
        lr=1e-4,
    )
    write_settings(tmp_path / "config.toml", settings)
    loaded = settings_from(tmp_path / "config.toml", TrainSettings)
    assert loaded == settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", "did you mean 'epochs'"),
        ("epochs-q = 3", "did you mean 'epochs_q'"),
        ("zzz = 1", "known keys are"),
        ('epochs = "3"', r"epochs = '3' is of the wrong type.*int"),
        ("epochs = 3.5", "wrong type"),
        ("bits = 4", "wrong type"),
        ("crop = [1.5, 2]", "wrong type"),
        ('loss = "dice"', "wrong type"),
        ("data = 7", "wrong type"),
        ("epochs = ", "not valid TOML"),
    ],
)
def test_bad_files_say_what_was_meant(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=message) as caught:
        read_values(path, TrainSettings)
    assert str(path) in str(caught.value)


def test_missing_files_and_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_values(tmp_path / "none.toml", TrainSettings)
    (tmp_path / "config.toml").write_text('data = "x"')
    with pytest.raises(ConfigError, match="'out' is missing"):
        settings_from(tmp_path / "config.toml", TrainSettings)


def test_integers_are_fine_where_numbers_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("hue = 10\ncrop = [64, 64]\n")
    assert read_values(tmp_path / "config.toml", TrainSettings) == {"hue": 10.0, "crop": (64, 64)}


def test_every_committed_experiment_is_a_valid_configuration() -> None:
    folder = Path(__file__).parents[2] / "experiments"
    for experiment in find_experiments(folder):
        file = folder / f"{experiment.name}.toml"
        TrainSettings(**({"data": Path("d"), "out": Path("o")} | read_values(file, TrainSettings)))
