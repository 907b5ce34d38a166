"""A node without an HTTP door, whose health nobody can ask: it works, ends in order, and ends to be seen."""

from __future__ import annotations

import inspect
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pynetdicom import AE

from d2ed2q.cli import main
from d2ed2q.deploy import Predictor
from d2ed2q.errors import BundleError, D2ED2QError
from d2ed2q.serve import association, delivery, dicom, worker
from d2ed2q.serve import node as room
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import WatchSettings, read_node_settings
from d2ed2q.serve.store import JobStore
from d2ed2q.serve.worker import Worker

from ..data.dicom_files import OP8, make_dicom
from .helpers import free_port, program, wait


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "camera").mkdir()
    return tmp_path / "camera"


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    text = f'state = "{tmp_path / "state"}"\nrefuse = 1.0\nthreads = 1\n'
    path.write_text(text + f'[[watch]]\nfolder = "{folder}"\nsettled_seconds = 0.1\n')
    return path


def events(tmp_path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]


def test_it_starts_works_and_ends_when_it_is_asked_to(
    bundle: Path, config: Path, folder: Path, photo: bytes, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "d2ed2q", "serve", str(bundle), "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    mask = folder / "results" / "photo.png_mask.png"
    try:
        (folder / "photo.png").write_bytes(photo)
        wait(lambda: mask.is_file() or process.poll() is not None, 120)
        assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert f"folder {folder}" in out
    assert "http" not in out, "there is no such door"
    assert errors == ""
    assert events(tmp_path) == ["started", "received", "segmented", "stopped"]


@pytest.mark.parametrize("http", [False, True])
def test_it_ends_in_order_when_it_is_asked_to_as_soon_as_a_door_is_open(
    http: bool, bundle: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    port, config = free_port(), tmp_path / "node.toml"
    door = f"[http]\nport = {free_port()}\n" if http else ""
    config.write_text(f'state = "{tmp_path / "state"}"\nthreads = 1\n[dicom]\nport = {port}\n{door}')
    command = [sys.executable, "-m", "d2ed2q", "serve", str(bundle), "--config", str(config)]
    image = make_dicom(picture, OP8)
    entity = AE("CAMERA")
    entity.add_requested_context(image.SOPClassUID)
    with program(*command, port=port) as process:
        association = entity.associate("127.0.0.1", port, ae_title="D2ED2Q")
        assert association.send_c_store(image).Status == 0
        process.send_signal(signal.SIGTERM)
        association.release()  # a node waits half a minute for who is still connected
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    seen = events(tmp_path)
    assert (seen[:2], seen[-1]) == (["started", "received"], "stopped")
    store = JobStore(tmp_path / "state")
    counts = store.counts()
    store.close()
    assert counts["waiting"] + counts["done"] + counts["refused"] == 1, "what was acknowledged is there"


def test_an_engine_that_fails_at_the_start_is_an_error(
    bundle: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = Predictor.raw
    monkeypatch.setattr(Predictor, "raw", lambda self, x: 1 - raw(self, x))
    assert main(["serve", str(bundle), "--config", str(config)]) == 2
    assert "gives other results" in capsys.readouterr().err


def test_an_engine_that_fails_later_and_does_not_come_back_is_an_error(
    bundle: Path,
    config: Path,
    folder: Path,
    photo: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 1.0)
    monkeypatch.setattr(worker, "_PAUSE", 0.1)
    raw, asked = Predictor.raw, []

    def once(self: Predictor, x: np.ndarray) -> np.ndarray:
        asked.append(x.shape)
        if len(asked) > 1:  # after the test at the start
            raise BundleError("the engine does not answer")
        return raw(self, x)

    monkeypatch.setattr(Predictor, "raw", once)
    (folder / "photo.png").write_bytes(photo)
    assert main(["serve", str(bundle), "--config", str(config)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the engine" in said
    assert "start it again" in said
    assert len(asked) > 2, "it was asked again and again"
    assert not (folder / "results").exists()
    assert (folder / "photo.png").is_file(), "no fault of the image"
    assert events(tmp_path) == ["started", "received", "stopped"]
    monkeypatch.undo()
    with Node(bundle, read_node_settings(config)).running():
        wait(lambda: (folder / "results" / "photo.png_mask.png").is_file())


def test_an_engine_that_comes_back_in_time_ends_nothing(
    make_node: Callable[..., Node], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    bound = room._PATIENCE
    node = make_node(http=None, watch=(WatchSettings(folder),))
    monkeypatch.setattr(node.model, "recovered", lambda: False)  # it is as sound as this test says
    with node.running():
        look = node._does_its_work(lambda: now)
        for seconds, sound, goes_on in (
            (bound * 5, True, True),
            (bound - 1, False, True),
            (1, True, True),
            (bound - 1, False, True),
            (2, False, False),
        ):
            now += seconds
            node.model._sound = sound
            assert look() is goes_on


def test_a_worker_that_ends_is_an_error(
    make_node: Callable[..., Node], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "_run", lambda self: None)
    with pytest.raises(D2ED2QError, match="ended by itself"):
        make_node(http=None, watch=(WatchSettings(folder),)).run()


def test_the_unit_waits_as_long_as_a_node_may_take_to_end() -> None:
    unit = (Path(__file__).resolve().parents[2] / "packaging" / "d2ed2q.service").read_text(encoding="utf-8")
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    http, watched, broker, doors = 60, 30, 10, dicom._TIMEOUT + 2 * association._LAST
    own = inspect.signature(Worker.stop).parameters["seconds"].default
    assert int(seconds) > http + watched + broker + doors + own + delivery._LONGEST_STOP
