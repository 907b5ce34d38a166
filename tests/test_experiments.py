"""Published figures come from kept results, never from somebody's keyboard."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "experiments").glob("*.json"))


def script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record() -> ModuleType:
    return script("record")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_has_its_configuration(path: Path) -> None:
    assert (path.parent / json.loads(path.read_text())["configuration"]).is_file()


def test_every_published_figure_is_of_a_kept_result(record: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    block = text.split(record.START)[1].split(record.END)[0].strip()
    assert block == record.overview(record.results())
    assert (ROOT / "docs" / "results.md").read_text() == record.page(record.results())


DEPLOYED = sorted((ROOT / "experiments" / "deployment").glob("*.json"))


def test_the_table_of_bundles_is_made_of_kept_results() -> None:
    module = script("deployment")
    text = (ROOT / "README.md").read_text()
    block = text.split(module.START)[1].split(module.END)[0].strip()
    assert block == module.table([json.loads(path.read_text()) for path in DEPLOYED])
