"""What is published about a node's installation is true: the bill of materials, and what starts a node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d2ed2q import cli
from d2ed2q.serve.association import _HANDSHAKES
from d2ed2q.serve.command import ServeSettings
from d2ed2q.serve.connections import MOST_CONNECTIONS
from d2ed2q.serve.settings import DicomSettings, QueueSettings

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


def test_the_containerfile_has_nothing_that_hadolint_minds() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is installed on Linux only")
    done = subprocess.run([hadolint, ROOT / "packaging" / "Containerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_containers_health_is_asked_by_the_settings_that_it_is_started_with() -> None:
    text = (ROOT / "packaging" / "Containerfile").read_text(encoding="utf-8")
    words = {
        key: json.loads(value)
        for key, value in re.findall(r"^ *(ENTRYPOINT|CMD) (\[.*\])$", text.split("HEALTHCHECK")[1], re.MULTILINE)[1:]
    }
    (asked,) = re.findall(r"^HEALTHCHECK [^\[]*CMD (\[.*\])$", text, re.MULTILINE)
    program, verb, *rest = json.loads(asked)
    assert [program, verb] == words["ENTRYPOINT"]
    asks, runs = (cli._parse(verb, ServeSettings, list(given)) for given in (rest, words["CMD"]))
    assert isinstance(asks, ServeSettings)
    assert isinstance(runs, ServeSettings)
    assert asks.health
    assert (runs.health, asks.config) == (False, runs.config)


@pytest.mark.parametrize("page", ["packaging/Containerfile", "docs/node.md"])
def test_the_image_is_built_in_the_format_that_has_health_checks(page: str) -> None:
    built = re.findall(r"podman build [^`]*?Containerfile", (ROOT / page).read_text(encoding="utf-8"))
    assert built, "who builds it otherwise gets a container that nobody asks"
    assert all(line.split()[2:] == ["--format", "docker", "-f", "packaging/Containerfile"] for line in built)


def test_the_unit_waits_for_the_right_time() -> None:
    unit = (ROOT / "packaging" / "d2ed2q.service").read_text(encoding="utf-8")
    ordered = " ".join(re.findall(r"^After=(.*)$", unit, re.MULTILINE)).split()
    assert {"network-online.target", "time-sync.target"} <= set(ordered)


@pytest.mark.integration
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    unit = (ROOT / "packaging" / "d2ed2q.service").read_text(encoding="utf-8")
    (tmp_path / "d2ed2q.service").write_text(unit.replace("/opt/d2ed2q/bin/d2ed2q", sys.executable), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "d2ed2q.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "d2ed2q.service" not in done.stderr, done.stderr


def test_the_unit_allows_as_many_files_as_a_node_may_need() -> None:
    unit = (ROOT / "packaging" / "d2ed2q.service").read_text(encoding="utf-8")
    (service,) = re.findall(r"^\[Service\]\n(.*?)^\[", unit, re.MULTILINE | re.DOTALL)
    (limit,) = re.findall(r"^LimitNOFILE=(\d+)$", service, re.MULTILINE)
    dicom = DicomSettings()
    connections = MOST_CONNECTIONS + dicom.associations + _HANDSHAKES
    images = QueueSettings().waiting + 2 * connections  # that wait, and one with its results of each connection
    own = 256  # of libraries, the database, the audit log
    assert int(limit) >= 4 * (connections + images + own), "connections beyond them cost one too, until they are closed"
