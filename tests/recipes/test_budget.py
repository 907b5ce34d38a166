from __future__ import annotations

from pathlib import Path

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.budget import budget_seconds, duration
from d2ed2q.recipes.config import read_values
from d2ed2q.recipes.machine import this_machine
from d2ed2q.recipes.train_settings import TrainSettings


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1H 30m".replace(" ", ""), 5400)]
)
def test_budgets_are_times(text: str, seconds: int) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10 m", "m", "-5m", "0s", "1.5h", "30m1h", "ten"])
def test_wrong_budgets_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="1h30m"):
        TrainSettings(tmp_path, tmp_path, budget=text)


def test_a_budget_and_a_limit_have_to_agree(tmp_path: Path) -> None:
    TrainSettings(tmp_path, tmp_path, budget="10m", time_limit=600.0)
    with pytest.raises(ConfigError, match="another budget"):
        TrainSettings(tmp_path, tmp_path, budget="20m", time_limit=600.0)
    with pytest.raises(ConfigError, match="positive"):
        TrainSettings(tmp_path, tmp_path, time_limit=0.0)
    with pytest.raises(ConfigError, match="fill_time needs a time_limit"):
        TrainSettings(tmp_path, tmp_path, fill_time=True)


def test_durations_are_said_as_people_do() -> None:
    assert [duration(x) for x in (8, 90, 600, 3900)] == ["8 s", "1 min 30 s", "10 min", "1 h 5 min"]


def test_the_machine_is_looked_at() -> None:
    machine = this_machine("cpu")
    assert machine.cores >= 1
    assert machine.memory is None or 0 < machine.memory < 10**14
    assert machine.gpu is None


def test_the_plan_in_the_documentation_is_a_configuration(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
    text = page.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    settings = TrainSettings(tmp_path, tmp_path, **read_values(tmp_path / "plan.toml", TrainSettings))
    assert settings.time_limit == 3600
