"""Of which image the results in a watched folder are, whoever writes, touches or takes away what."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d2ed2q.serve.settings import WatchSettings
from d2ed2q.serve.store import JobStore
from d2ed2q.serve.watch import Watcher

NAMES = ("doubt.png", "mask.png", "overlay.png", "probability.png", "summary.json")


class Camera:
    """A watched folder, and a node behind it that works when it is told to."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder, self.results = base, base / "camera", base / "camera" / "results"
        self.folder.mkdir()
        self.photo = self.folder / "photo.jpg"
        self.start()

    def start(self, limit: int = 256) -> None:
        self.store = JobStore(self.base / "state", limit=limit)
        nobody: Any = SimpleNamespace(wake=lambda: None, note=lambda *_, **__: None)
        settings = WatchSettings(self.folder, settled_seconds=0)
        self.watcher = Watcher([settings], self.store, nobody, self.render, nobody, "model")

    def restart(self, limit: int = 256) -> None:
        self.store.close()
        self.start(limit)

    def render(self, job: int, name: str) -> bytes:
        content = self.store.input_of(job).read_text()
        return json.dumps({"of": content}).encode() if name.endswith("json") else f"{name} of {content}".encode()

    def work(self, state: Any = "done") -> None:
        """Ends everything that waits."""
        while (job := self.store.take()) is not None:
            self.store.results_of(job.id).parent.mkdir(exist_ok=True)
            self.store.results_of(job.id).write_bytes(b"results")
            self.store.finish(job.id, state, {})

    def segment(self, content: str, state: Any = "done") -> None:
        """Takes a picture, and waits for its results."""
        self.photo.write_text(content)
        self.watcher.look()
        self.work(state)
        self.watcher.look()
        assert self.mask() == f"mask.png of {content}"

    def mask(self) -> str:
        return (self.results / "photo.jpg_mask.png").read_text()

    def there(self) -> list[str]:
        return sorted(path.name for path in self.results.iterdir())


@pytest.fixture
def camera(tmp_path: Path) -> Any:
    camera = Camera(tmp_path)
    yield camera
    camera.store.close()


@pytest.mark.parametrize("content", ["patient two", "patient three", ""])
@pytest.mark.parametrize("restarted", [False, True])
def test_results_of_an_earlier_image_go_as_soon_as_its_name_is_used_again(
    content: str, restarted: bool, camera: Camera
) -> None:
    camera.segment("patient one", "refused")
    assert camera.there() == sorted(f"photo.jpg_{name}" for name in (*NAMES, "refused.txt"))
    if restarted:
        camera.restart()
    camera.watcher.folders = (WatchSettings(camera.folder, settled_seconds=60),)  # it is not finished for long
    camera.photo.write_text(content)
    camera.watcher.look()
    assert camera.there() == []
    assert camera.store.counts()["waiting"] == 0


def test_results_of_earlier_images_go_while_the_queue_is_full(camera: Camera) -> None:
    camera.segment("patient one")
    camera.restart(limit=1)
    (camera.folder / "before.jpg").write_text("another")
    (camera.folder / "between.jpg").write_text("a third")
    camera.photo.write_text("patient two")
    camera.watcher.look()
    assert camera.there() == []
    assert camera.store.counts()["waiting"] == 1


def test_results_of_an_image_that_was_taken_away_go_when_its_name_is_used_again(camera: Camera) -> None:
    camera.segment("patient one")
    camera.photo.unlink()
    camera.watcher.look()
    assert len(camera.there()) == 5, "they are of nobody else"
    camera.photo.write_text("patient two")
    camera.watcher.look()
    assert camera.there() == []


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_was_only_touched_or_copied_keeps_its_results(restarted: bool, camera: Camera) -> None:
    camera.segment("patient one")
    written = {path: path.stat().st_mtime_ns for path in camera.results.iterdir()}
    for again in (lambda: os.utime(camera.photo, (1, 1)), lambda: camera.photo.write_text("patient one")):
        again()
        if restarted:
            camera.restart()
        for _ in range(3):
            camera.watcher.look()
        assert {path: path.stat().st_mtime_ns for path in camera.results.iterdir()} == written
        assert camera.store.counts()["waiting"] == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_results_that_were_taken_away_are_not_written_again(restarted: bool, camera: Camera) -> None:
    def looked() -> list[str]:
        if restarted:
            camera.restart()
        for _ in range(3):
            camera.watcher.look()
            camera.work()
        return camera.there()

    def take_away() -> None:
        for path in camera.results.iterdir():
            path.unlink()

    camera.segment("patient one")
    (camera.results / "photo.jpg_mask.png").unlink()
    assert len(looked()) == 4, "an importer takes its time"
    take_away()
    assert looked() == []
    os.utime(camera.photo, (1, 1))
    assert looked() == []
    camera.photo.rename(camera.base / "photo.jpg")
    camera.watcher.look()
    (camera.base / "photo.jpg").rename(camera.photo)
    assert len(looked()) == 5, "who moves it out and in again asks for them"
    take_away()
    camera.photo.write_text("patient two")
    assert len(looked()) == 5
    take_away()
    camera.photo.write_text("patient one")
    assert len(looked()) == 5, "it is the image of before, of which there was another meanwhile"


def test_an_older_nodes_results_are_known_by_their_summary(camera: Camera) -> None:
    camera.segment("patient one")
    with camera.store._database.transaction() as db:
        db.execute("DELETE FROM written")
    camera.restart()
    camera.watcher.look()
    for path in camera.results.iterdir():
        path.unlink()
    camera.restart()
    camera.watcher.look()
    camera.watcher.look()
    assert camera.there() == []


def test_files_with_names_that_are_no_text_are_noted_too(camera: Camera) -> None:
    path = camera.folder / os.fsdecode(b"f\xfcnf.jpg")
    path.write_text("patient one")
    camera.watcher.look()
    camera.work()
    camera.watcher.look()
    camera.restart()
    camera.watcher.look()
    assert len(camera.there()) == 5
    path.unlink()
    camera.watcher.look()
    with camera.store._database.reading() as db:
        assert db.execute("SELECT count(*) FROM written").fetchone() == (0,)


def test_results_of_nobody_stay_until_there_are_others(camera: Camera) -> None:
    camera.results.mkdir()
    for name, content in (("mask.png", "a stranger's"), ("summary.json", '{"source": 3}')):
        (camera.results / f"photo.jpg_{name}").write_text(content)
    camera.photo.write_text("patient one")
    camera.watcher.look()
    assert camera.mask() == "a stranger's"
    camera.work()
    camera.watcher.look()
    assert camera.mask() == "mask.png of patient one"
