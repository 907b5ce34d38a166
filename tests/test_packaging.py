"""What is published about a node's installation is true: the bill of materials, and what starts a node."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_bill_of_materials_has_the_pinned_versions() -> None:
    text = (ROOT / "packaging" / "sbom.cdx.json").read_text(encoding="utf-8")
    components = {_plain(part["name"]): part["version"] for part in json.loads(text)["components"]}
    pinned = {
        _plain(line.partition("==")[0]): line.partition("==")[2].partition(";")[0].strip()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    others = {name: version for name, version in components.items() if pinned.get(name) != version}
    assert set(others) == {"d2ed2q"}, "pin these in constraints.txt, or write the list anew: make sbom"
    assert {"openvino", "fastapi", "pynetdicom", "highdicom", "aiomqtt"} <= set(components)
    assert "torch" not in components
    assert "file://" not in text
