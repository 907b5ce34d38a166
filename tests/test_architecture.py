"""The walls of the house: who imports whom, how long files are, and what the front door offers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import d2ed2q

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "d2ed2q"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# From the top of the house to the bottom.
ORDER = (
    "__main__",
    "cli",
    "verbs",
    "__init__",
    "serve",
    "recipes",
    "report",
    "deploy",
    "training",
    "quantization",
    "ensemble",
    "backbones",
    "data",
    "metrics",
    "files",
    "limits",
    "errors",
)
STRANGERS = frozenset({"quantization", "training", "data", "metrics", "backbones"})
FORBIDDEN = frozenset({"torchvision", "timm", "segmentation_models_pytorch"})
LONGEST = 350
SOURCES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = sorted(path for place in ("tests", "benchmarks", "experiments") for path in (ROOT / place).rglob("*.py"))
EVERYTHING = [*SOURCES, *OUTSIDE, ROOT / "train.py", ROOT / "eval.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """Absolute names of all modules that a source imports, wherever in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    """Rooms of this package that a file imports."""
    rooms = set()
    for name in imported(path.read_text(encoding="utf-8")):
        assert not name.startswith("."), f"{path}: imports are absolute in this house"
        parts = name.split(".")
        if parts[0] == "d2ed2q":
            rooms.add(parts[1] if len(parts) > 1 and parts[1] in ORDER else "__init__")
    return rooms


def walls() -> dict[str, set[str]]:
    """For every room, what it really imports, itself left out."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        room = room_of(path)
        found.setdefault(room, set()).update(rooms_imported(path) - {room})
    return found


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    from d2ed2q.data import x\n    import torch.nn as nn\nfrom . import y\n"
    assert set(imported(source)) == {"d2ed2q.data.x", "torch.nn", ".", ".y"}


def test_every_room_has_its_place() -> None:
    assert set(walls()) == set(ORDER)


def test_imports_go_only_downward() -> None:
    upward = [
        f"{room} imports {other}"
        for room, others in walls().items()
        for other in others
        if ORDER.index(other) <= ORDER.index(room)
    ]
    assert not upward


def test_rooms_that_can_be_used_alone_do_not_know_each_other() -> None:
    found = walls()
    assert all(not found[room] & STRANGERS for room in STRANGERS)


def test_the_documented_table_of_imports_is_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    documented = {room: set(re.findall(r"`(\w+)`", others)) for room, others in rows}
    ground = {"errors", "files", "limits"}
    actual = {room: others - ground for room, others in walls().items() if room not in ground}
    assert documented == actual


def test_the_documented_tree_is_the_package() -> None:
    tree = PAGE.split("```")[1]
    assert tree.strip().startswith("src/d2ed2q/")
    found: list[Path] = []
    for line in tree.strip().splitlines()[1:]:
        match = re.match(r"((?:│   )?)[├└]── (\S+)", line)
        assert match, line
        parent = next(path for path in reversed(found) if path.is_dir()) if match.group(1) else PACKAGE
        found.append(parent / match.group(2))
    assert not [path for path in found if not path.exists()]
    assert {room_of(path) for path in found} == set(ORDER)


def test_the_documented_order_is_the_tested_one() -> None:
    names = re.findall(r"^[├└]── (\w+?)(?:/|\.py) ", PAGE.split("```")[1], re.MULTILINE)
    assert [name for name in names if name in ORDER[3:]] == list(ORDER[3:])


def test_nothing_needs_torchvision_or_its_relatives() -> None:
    users = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in EVERYTHING
        for name in imported(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in FORBIDDEN
    ]
    assert not users


def test_files_stay_short() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in EVERYTHING}
    assert not {str(path): length for path, length in lengths.items() if length >= LONGEST}


def test_the_front_door_is_sorted_and_complete() -> None:
    assert d2ed2q.__all__ == sorted(set(d2ed2q.__all__))
    assert dir(d2ed2q) == d2ed2q.__all__
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    # What a type checker is told and what is imported must be the same thing.
    assert {name: f"d2ed2q.{home}" for name, home in d2ed2q._HOMES.items()} == typed
    assert sorted(typed) == d2ed2q.__all__


@pytest.mark.parametrize("name", d2ed2q.__all__)
def test_every_name_at_the_front_door_can_be_imported(name: str) -> None:
    home = import_module(f"d2ed2q.{d2ed2q._HOMES[name]}")
    assert getattr(d2ed2q, name) is getattr(home, name)
    assert name in home.__all__


def test_other_names_are_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        d2ed2q.__getattr__("no_such_thing")
