from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import QueueSettings, WatchSettings
from d2ed2q.serve.watch import Watcher

from .helpers import wait


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "camera"
    path.mkdir()
    return path


def watched(folder: Path) -> tuple[WatchSettings, ...]:
    return (WatchSettings(folder, settled_seconds=0.1),)


def test_finished_files_are_segmented_once_and_failures_moved_aside(
    make_node: Callable[..., Node], folder: Path, photo: bytes, picture: np.ndarray
) -> None:
    node = make_node(http=None, watch=watched(folder))
    mask = folder / "results" / "photo_mask.png"
    with node.running():
        (folder / "photo.png").write_bytes(photo)
        (folder / "broken.png").write_bytes(photo[:100])
        (folder / "notes.txt").write_text("not for us")
        (folder / ".hidden.png").write_bytes(photo)
        wait(lambda: mask.is_file() and (folder / "failed" / "broken.png").is_file())
        expected = node.model.segment(picture).prediction.mask
        assert np.array_equal(np.asarray(Image.open(mask)) > 0, expected > 0)
        assert "damaged" in (folder / "failed" / "broken.png.txt").read_text()
        assert sorted(path.name for path in (folder / "results").iterdir()) == [
            "photo_doubt.png", "photo_mask.png", "photo_overlay.png", "photo_probability.png", "photo_summary.json"
        ]  # fmt: skip
        assert (folder / "photo.png").is_file()
        written = mask.stat().st_mtime_ns
        time.sleep(1.5)
        assert mask.stat().st_mtime_ns == written
        Image.fromarray(picture[::-1]).save(folder / "photo.png")
        wait(lambda: mask.stat().st_mtime_ns != written)
    assert node.audit.path.read_text().count('"segmented"') == 2
    assert "photo" not in node.audit.path.read_text(), "names of files may be names of patients"


def test_a_file_that_grows_is_not_touched(make_node: Callable[..., Node], folder: Path, photo: bytes) -> None:
    node = make_node(http=None, watch=watched(folder))
    watcher = Watcher(watched(folder), node.store, node.worker, node.render, node.audit, "model")
    (folder / "photo.png").write_bytes(photo[:50])
    watcher.look()
    time.sleep(0.15)
    with open(folder / "photo.png", "ab") as file:
        file.write(photo[50:])
    watcher.look()
    assert node.store.counts()["waiting"] == 0
    time.sleep(0.15)
    watcher.look()
    assert node.store.counts()["waiting"] == 1


def test_a_restarted_node_goes_on(make_node: Callable[..., Node], folder: Path, photo: bytes) -> None:
    (folder / "photo.png").write_bytes(photo)
    os.utime(folder / "photo.png", (1, 1))
    node = make_node(http=None, watch=watched(folder))
    watcher = Watcher(watched(folder), node.store, node.worker, node.render, node.audit, node.model.bundle.sha256)
    watcher.look()
    time.sleep(0.15)
    watcher.look()
    assert node.store.counts()["waiting"] == 1
    node.store.close()  # killed before it was segmented
    with make_node(http=None, watch=watched(folder)).running() as again:
        wait(lambda: (folder / "results" / "photo_mask.png").is_file())
        assert again.store.counts()["done"] == 1


def test_a_full_queue_lets_files_wait(make_node: Callable[..., Node], folder: Path, picture: np.ndarray) -> None:
    for number in range(5):
        Image.fromarray(np.roll(picture, number, axis=0)).save(folder / f"photo{number}.png")
    with make_node(http=None, watch=watched(folder), queue=QueueSettings(waiting=1)).running():
        wait(lambda: len(list((folder / "results").glob("*_mask.png"))) == 5)
