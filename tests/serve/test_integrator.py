"""Whoever follows docs/node.md: its settings are taken and its commands do what they are there for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image

from d2ed2q.recipes.config import load_toml
from d2ed2q.serve.settings import NodeSettings, read_node_settings

from ..data.dicom_files import OP8, as_bytes, make_dicom
from ..pages import ROOT, blocks, command_lines, text_of
from .helpers import free_port, listens, needs, program, wait

PAGE = "docs/node.md"
CHECK = "d2ed2q serve model.d2q --config node.toml --check"
SERVE = "d2ed2q serve model.d2q --config node.toml"
TOKEN = "d2ed2q serve --new-token"
SMALLEST, *OTHERS = [text for _, text in blocks(PAGE, "toml")]
(TOKENS,) = (text for text in OTHERS if "[http.tokens]" in text)
DOORS = [text for text in OTHERS if text != TOKENS]
Done = subprocess.CompletedProcess[str]
PLACES = ("127.0.0.1:8080", "127.0.0.1 11112", "4242", "1883", "/var/lib/d2ed2q", "/srv/camera")  # yours, says the page


@dataclass
class Box:
    """A folder with what the page's reader has, and ports of its own.

    Attributes:
        folder: where commands run.
        environment: that they run in.
        ports: in place of 8080, 11112, 4242 and 1883.
    """

    folder: Path
    environment: dict[str, str]
    ports: dict[str, int] = field(
        default_factory=lambda: {name: free_port() for name in ("8080", "11112", "4242", "1883")}
    )

    def own(self, text: str) -> str:
        """A text of the page with this box's places in the place of those that it names."""
        own = (
            f"127.0.0.1:{self.ports['8080']}", f"127.0.0.1 {self.ports['11112']}", str(self.ports["4242"]),
            str(self.ports["1883"]), str(self.folder / "state"), str(self.folder / "camera"),
        )  # fmt: skip
        mine = dict(zip(PLACES, own, strict=True))
        # All at once: a port put in for one place may hold the digits of another.
        return re.sub("|".join(map(re.escape, PLACES)), lambda found: mine[found[0]], text)

    def configure(self, *examples: str) -> NodeSettings:
        text = self.own("".join(examples))
        for table, port in (("[http]", "8080"), ("[dicom]", "11112")):
            text = text.replace(f"{table}\n", f"{table}\nport = {self.ports[port]}\n", 1)
        # A model of three epochs doubts everything, and two cores are enough for it.
        path = self.folder / "node.toml"
        path.write_text("refuse = 1.0\nthreads = 1\n" + text)
        return read_node_settings(path)

    def run(self, command: str, seconds: float = 120) -> Done:
        return subprocess.run(
            self.own(command), shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=seconds,
        )  # fmt: skip

    def serve(self) -> Iterator[subprocess.Popen[bytes]]:
        """A node, started as the page says, and asked to stop at the end."""
        said = open(self.folder / "said", "wb")  # noqa: SIM115  # nobody empties a pipe meanwhile
        process = subprocess.Popen(
            shlex.split(SERVE), cwd=self.folder, env=self.environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            wait(lambda: listens(self.ports["8080"]) or process.poll() is not None, 120)
            assert process.poll() is None, self.said()
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0, self.said()
        finally:
            process.kill()
            process.wait()
            said.close()

    def said(self) -> str:
        return (self.folder / "said").read_text()


@pytest.fixture(scope="module")
def make_box(bundle: Path, photo: bytes, picture: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Box]:
    def make() -> Box:
        folder = tmp_path_factory.mktemp("integrator")
        shutil.copy(bundle, folder / "model.d2q")
        Image.fromarray(picture).save(folder / "photo.jpg")
        (folder / "image.dcm").write_bytes(as_bytes(make_dicom(picture, OP8)))
        (folder / "camera").mkdir()
        (folder / "bin").mkdir()
        command = folder / "bin" / "d2ed2q"  # of this very Python and this very code
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m d2ed2q "$@"\n')
        command.chmod(0o755)
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return Box(folder, os.environ | {"PATH": path, "no_proxy": "127.0.0.1"})

    return make


@pytest.fixture(scope="module")
def box(make_box: Callable[[], Box]) -> Iterator[Box]:
    """A node with every door that the page opens."""
    made = make_box()
    made.configure(SMALLEST, *DOORS)
    for _ in made.serve():
        yield made


def is_ready(_: Box, done: Done) -> None:
    assert json.loads(done.stdout) == {"ready": True}


def is_a_summary(_: Box, done: Done) -> None:
    summary = json.loads(done.stdout)
    assert summary["state"] == "done"
    assert summary["note"] == "research use only; not a medical device"


def is_a_picture(name: str) -> Callable[[Box, Done], None]:
    def check(box: Box, done: Done) -> None:
        sha256 = hashlib.sha256((box.folder / "model.d2q").read_bytes()).hexdigest()
        with Image.open(box.folder / name) as found, Image.open(box.folder / "photo.jpg") as given:
            assert found.size == given.size
            assert found.info["Model-SHA256"] == sha256

    return check


def is_a_segmentation(box: Box, done: Done) -> None:
    found, image = (pydicom.dcmread(box.folder / name) for name in ("segmentation.dcm", "image.dcm"))
    assert found.Modality == "SEG"
    assert found.StudyInstanceUID == image.StudyInstanceUID


def counts(_: Box, done: Done) -> None:
    assert "d2ed2q_requests_total" in done.stdout


def says_it_is_well(_: Box, done: Done) -> None:
    assert done.stdout == "the node can be sent images\n"


def is_verified(_: Box, done: Done) -> None:
    assert re.match(r"\d+ entries, none changed", done.stdout)


def came_as(door: str) -> Callable[[Box, Done], None]:
    """That an image was taken at a door."""

    def check(box: Box, _: Done) -> None:
        log = box.folder / "state" / "audit.jsonl"
        wait(lambda: any(one.get("door") == door for one in map(json.loads, log.read_text().splitlines())))

    return check


def is_done_in_the_folder(box: Box, _: Done) -> None:
    wait((box.folder / "camera" / "results" / "photo.jpg_mask.png").is_file)


def answers(_: Box, done: Done) -> None:
    """Its exit status says it all."""


SEGMENT, ASKED = "http://127.0.0.1:8080/segment", "curl -f --data-binary"
RUN: dict[str, Callable[[Box, Done], None]] = {
    "curl -f http://127.0.0.1:8080/v2/health/ready": is_ready,
    f"{ASKED} @photo.jpg {SEGMENT}": is_a_summary,
    f"{ASKED} @photo.jpg -H 'Accept: image/png' -o mask.png {SEGMENT}": is_a_picture("mask.png"),
    f"{ASKED} @photo.jpg -o overlay.png '{SEGMENT}?result=overlay.png'": is_a_picture("overlay.png"),
    f"{ASKED} @image.dcm -H 'Accept: application/dicom' -o segmentation.dcm {SEGMENT}": is_a_segmentation,
    "curl -f http://127.0.0.1:8080/metrics": counts,
    "d2ed2q serve --health --config node.toml": says_it_is_well,
    "cp photo.jpg /srv/camera/": is_done_in_the_folder,
    "d2ed2q audit verify /var/lib/d2ed2q/audit.jsonl": is_verified,
}
PEERS: dict[str, Callable[[Box, Done], None]] = {
    "echoscu -aet CAMERA -aec D2ED2Q 127.0.0.1 11112": answers,
    "storescu -aet CAMERA -aec D2ED2Q 127.0.0.1 11112 image.dcm": came_as("dicom"),
}
LISTEN = "mosquitto_sub -V 5 -h 127.0.0.1 -p 1883 -t d2ed2q/status -C 1"
GUARDED = f'{ASKED} @photo.jpg -H "Authorization: Bearer $TOKEN" {SEGMENT}'
ALONE = (CHECK, SERVE, TOKEN, LISTEN, GUARDED)  # each in a test of its own
NOT_RUN = {
    "pip install 'd2ed2q[serve]'": "it needs the internet; that there is such an extra is tested",
}
SAID_IN_PASSING = {
    "d2ed2q predict": "another verb, where a node is not the thing",
    TOKEN: "the same, in a table",
    "d2ed2q audit verify STATE/audit.jsonl": "the command at the end, for any state",
    "python benchmarks/node_batches.py MODEL.d2q --size 512 --out FILE": "a measurement of minutes, from a checkout",
}


def test_every_command_of_the_page_is_run_here_or_listed_with_a_reason() -> None:
    found = command_lines(PAGE)
    assert sorted(found) == sorted([*RUN, *PEERS, *ALONE, *NOT_RUN]), "run what is new, or list it with a reason"
    assert len(set(found)) == len(found)
    fences = re.findall(r"^ *(?:```|~~~)([^\n]*)$", text_of(PAGE), re.MULTILINE)
    assert set(fences) == {"sh", "toml", "text", ""}, "commands are sh, settings are toml"
    assert fences.count("") * 2 == len(fences), "every block says what it is"
    prose = re.sub(r"^```.*?^```$", "", text_of(PAGE), flags=re.MULTILINE | re.DOTALL)
    programs = {shlex.split(line)[0] for line in found} | {"systemctl", "podman", "docker", "sudo", "python", "python3"}
    passing = {span for span in re.findall(r"`([^`\n]+)`", prose) if span.split()[0] in programs and " " in span}
    assert passing == set(SAID_IN_PASSING)
    for place in re.findall(r"127\.0\.0\.1\S+|(?<=\s)/[\w/]+", "\n".join(found)):
        assert any(own in place or place in own for own in PLACES), f"{place} is none of the page's places"


def test_what_is_installed_is_an_extra() -> None:
    extras = load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    assert {name for line in NOT_RUN for name in re.findall(r"\[(\w+)\]", line)} <= set(extras)


def test_the_smallest_settings_are_valid_and_open_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(SMALLEST)
    settings = read_node_settings(tmp_path / "node.toml")
    assert settings.http is not None
    assert f"{settings.http.host}:{settings.http.port}" == "127.0.0.1:8080"
    assert (settings.dicom, settings.mqtt) == (None, None)
    assert settings.watch == ()


def test_the_check_names_every_door_and_says_which_peers_are_away(make_box: Callable[[], Box]) -> None:
    box = make_box()
    settings = box.configure(SMALLEST, *DOORS)
    assert all((settings.http, settings.dicom, settings.mqtt, settings.watch))
    done = box.run(CHECK)
    assert done.returncode == 0, done.stderr
    assert "settings, certificates and model are sound" in done.stdout
    for found in (
        f"http: 127.0.0.1:{box.ports['8080']} can be had",
        f"dicom: 127.0.0.1:{box.ports['11112']} can be had",
    ):
        assert found in done.stdout
    assert len(re.findall("^WARNING: .* does not answer", done.stdout, re.MULTILINE)) == 2
    with open(box.folder / "node.toml", "a") as file:
        file.write("\n[htp]\n")
    wrong = box.run(CHECK)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1), "2 and one line if not"


def test_the_node_is_started_as_the_page_says(box: Box) -> None:
    # It greets after its doors are open, by when a door has answered already.
    wait(lambda: "research use only; not a medical device" in box.said())
    assert "Traceback" not in box.said()


@pytest.mark.parametrize(
    "command", [*RUN, *(pytest.param(command, marks=pytest.mark.integration) for command in PEERS)]
)
def test_a_command_of_the_page_does_what_it_is_there_for(command: str, box: Box) -> None:
    name = shlex.split(command)[0]
    if name != "d2ed2q":
        needs(name)
    done = box.run(command)
    assert done.returncode == 0, done.stderr
    (RUN | PEERS)[command](box, done)


@pytest.mark.integration
def test_the_broker_has_heard_that_the_node_is_online(box: Box) -> None:
    mosquitto, _ = needs("mosquitto"), needs(shlex.split(LISTEN)[0])
    port = box.ports["1883"]
    (box.folder / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    with program(mosquitto, "-c", str(box.folder / "mosquitto.conf"), port=port):
        assert box.run(LISTEN).stdout.strip() == "online"


def test_with_a_token_only_who_has_it_is_answered(make_box: Callable[[], Box]) -> None:
    needs("curl")
    box = make_box()
    made = re.fullmatch(r"token.*: (\S+)\nhash.*: ([0-9a-f]{64})\n", box.run(TOKEN).stdout)
    assert made is not None
    box.configure(SMALLEST, re.sub(r'"0{64}"', f'"{made[2]}"', TOKENS))
    for _ in box.serve():
        assert box.run(GUARDED).returncode == 22, "no token"
        box.environment["TOKEN"] = made[1]
        done = box.run(GUARDED)
        assert done.returncode == 0, done.stderr
        is_a_summary(box, done)
