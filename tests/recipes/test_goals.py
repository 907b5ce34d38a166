from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.goals import goals_table


def result(seed: int, auc: float, full: float | None = None) -> dict[str, Any]:
    def views(value: float) -> dict[str, Any]:
        return {"whole": {"meta": {"auc": value}, "base_1": {"auc": value / 2}}}

    few = views(auc)
    bits = None if full is None else [4]
    before = None if full is None else views(full)
    return {"seed": seed, "prediction": "meta", "bits": bits, "few_bit": few, "full_precision": before}


def table(folder: Path, goal: str, **results: list[dict[str, Any]]) -> str:
    (folder / "goals.toml").write_text(f'[[goals]]\nwhat = "it"\n{goal}\n', encoding="utf-8")
    return goals_table(folder, results)[-1].splitlines()[-1]


def test_without_goals_there_is_no_heading(tmp_path: Path) -> None:
    assert goals_table(tmp_path, {}) == []


def test_a_goal_without_results_is_not_measured(tmp_path: Path) -> None:
    line = table(tmp_path, 'of = { result = "a", figure = "auc" }\nat_least = 0.5')
    assert line == "| it | ≥ 0.5 | not measured | | |"


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("at_least = 0.2", "yes"),  # 12.7 standard errors of 0.05 reach down to 0.215
        ("at_least = 0.22", "yes, within chance"),
        ("at_least = 0.85", "yes, within chance"),
        ("at_least = 0.86", "**no**, within chance"),
        ("at_most = 0.2", "**no**"),
    ],
)
def test_the_mean_over_seeds_decides_and_says_where_it_may_be_chance(tmp_path: Path, bound: str, said: str) -> None:
    seeds = [result(0, 0.8), result(2, 0.9)]
    line = table(tmp_path, f'of = {{ result = "a", figure = "auc" }}\n{bound}', a=seeds)
    assert line.endswith(f"| 0.8500 ± 0.0707 | 0, 2 | {said} |")


def test_a_difference_is_taken_seed_by_seed_and_of_the_weights_and_views_that_are_asked_for(tmp_path: Path) -> None:
    goal = (
        'of = { result = "a", figure = "auc", weights = "full_precision" }\n'
        'minus = { result = "b", figure = "auc", view = "base_1" }\nat_most = -0.1'
    )
    line = table(tmp_path, goal, a=[result(0, 0.5, 0.25), result(1, 0.9, 0.9)], b=[result(0, 0.75)])
    assert line == "| it | ≤ -0.1 | −0.1250 | 0 | yes, of one seed |"


SHARE = (
    'of = { result = "student", figure = "auc" }\nminus = { result = "one", figure = "auc" }\n'
    'over = { result = "all", figure = "auc" }\nat_least = 0.7'
)


def test_a_share_is_of_mean_gains(tmp_path: Path) -> None:
    gains = {
        "student": [result(0, 0.96), result(1, 0.95)],
        "one": [result(0, 0.9), result(1, 0.9)],
        "all": [result(0, 1.0), result(1, 0.9)],
    }
    # Of seed 1 alone there is no gain to have a share of.
    assert table(tmp_path, SHARE, **gains).endswith("| 1.10 | 0, 1 | yes, within chance |")
    # Shares of 0.60, 0.61 and 0.62 of gains that differ a hundredfold: none is near 0.7.
    wholes = (0.001, 0.01, 0.1)
    sure = {
        "student": [result(seed, 0.5 + (0.6 + seed / 100) * gain) for seed, gain in enumerate(wholes)],
        "one": [result(seed, 0.5) for seed in range(3)],
        "all": [result(seed, 0.5 + gain) for seed, gain in enumerate(wholes)],
    }
    assert table(tmp_path, SHARE, **sure).endswith("| 0.62 | 0, 1, 2 | **no**, within chance |"), "weighed by gains"
    alike = {
        name: [result(seed, 0.5 + part + seed * 0.0001) for seed in range(3)]
        for name, part in (("student", 0.06), ("one", 0.0), ("all", 0.1))
    }
    assert table(tmp_path, SHARE, **alike).endswith("| 0.60 | 0, 1, 2 | **no** |")


def test_there_is_no_share_of_a_loss(tmp_path: Path) -> None:
    line = table(tmp_path, SHARE, student=[result(0, 0.8)], one=[result(0, 0.9)], all=[result(0, 0.8)])
    assert line.endswith("| no share: the whole is −0.1000 | 0 | **no**, of one seed |")


@pytest.mark.parametrize("bounds", ["", "at_least = 1.0\nat_most = 2.0"])
def test_a_goal_has_exactly_one_bound(tmp_path: Path, bounds: str) -> None:
    with pytest.raises(ConfigError, match=r"goals\.toml: .*the goal 'it' needs either at_least or at_most"):
        table(tmp_path, f'of = {{ result = "a", figure = "auc" }}\n{bounds}')


def test_a_goal_names_its_figure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"goals\.toml.*figure"):
        table(tmp_path, 'of = { result = "a" }\nat_least = 0.5')


@pytest.mark.parametrize("wrong", ['figure = "aucc"', 'figure = "auc", view = "base_9"'])
def test_a_figure_that_a_result_does_not_have_is_named(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"goals\.toml: a has no '(aucc' of prediction|auc' of base_9) in few_bit"):
        table(tmp_path, f'of = {{ result = "a", {wrong} }}\nat_least = 0.5', a=[result(0, 0.8)])


def test_few_bits_do_not_stand_for_float_weights_that_were_not_scored(tmp_path: Path) -> None:
    goal = 'of = { result = "a", figure = "auc", weights = "full_precision" }\nat_least = 0.5'
    assert table(tmp_path, goal, a=[result(0, 0.8)]).endswith("| 0.8000 | 0 | yes, of one seed |"), "never quantized"
    with pytest.raises(ConfigError, match="no 'auc' of prediction in full_precision"):
        table(tmp_path, goal, a=[result(0, 0.8) | {"bits": [4]}])
