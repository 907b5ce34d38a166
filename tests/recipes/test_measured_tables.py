from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d2ed2q.recipes.measured_tables import measured_tables


def keep(path: Path, **content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_nothing_measured_gives_no_headings(tmp_path: Path) -> None:
    assert measured_tables(tmp_path) == []


def test_a_budget_is_shown_in_minutes_beside_what_needs_no_training(tmp_path: Path) -> None:
    keep(
        tmp_path / "budget" / "drive.json",
        **{"dataset": "drive", "budget_seconds": 600, "seconds": 599.4, "backbone": "unet-xs", "images": 20},
        **{"dice": 0.79, "constant": 0.2, "threshold": 0.51},
    )
    heading, table = measured_tables(tmp_path)
    assert "`--budget` alone" in heading
    assert "| 10 min | 10.0 min | unet-xs | 20 | 0.7900 | 0.2000 | 0.5100 |" in table


def test_doubt_has_a_row_for_each_measure_and_a_minus_is_a_minus(tmp_path: Path) -> None:
    keep(
        tmp_path / "doubt" / "eyes.json",
        **{"images": 20, "tta": "none", "spearman": {"entropy": -0.4, "doubt": -0.81}},
        auc={"entropy": {"blurred": 0.5, "dark": 0.25}, "doubt": {"blurred": 1.0, "dark": 0.998}},
        dice={"untouched": 0.8123, "blurred": 0.3},
        refused=[{"by": "its own", "above": 0.0123, "share": {"untouched": 0.0, "blurred": 0.6667, "dark": 1.0}}],
    )
    _, table = measured_tables(tmp_path)
    assert "| measure | blurred | dark |" in table
    assert "| entropy | 0.500 | 0.250 | −0.40 |" in table
    assert "| doubt | 1.000 | 0.998 | −0.81 |" in table
    assert "0.812 untouched, 0.300 blurred" in table
    assert "| part that is refused | untouched | blurred | dark |" in table
    assert "| above 0.0123, its own | 0.00 | 0.67 | 1.00 |" in table


def test_thresholds_are_means_over_runs_and_the_furthest_below_the_best(tmp_path: Path) -> None:
    images = {"validation": 2, "all": 16}
    rows = [
        {"images": images, "dice": {"validation": 0.80, "all": 0.82, "best": 0.82}},
        {"images": images, "dice": {"validation": 0.78, "all": 0.79, "best": 0.80}},
    ]
    keep(tmp_path / "thresholds" / "recipe.json", rows=rows)
    _, table = measured_tables(tmp_path)
    assert table.splitlines()[-1] == (
        "| [recipe](../experiments/thresholds/recipe.json) | 2 "
        "| 2 | 0.7900 | −0.0200 | 16 | 0.8050 | −0.0100 | 0.8100 |"
    )
