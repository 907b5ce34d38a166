from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.errors import StorageError
from d2ed2q.serve import watch
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


def facts(node: Node) -> list[str]:
    """What every text of a node says."""
    return ["research use only; not a medical device", f"model SHA-256: {node.model.bundle.sha256}"]


def test_finished_files_are_segmented_once_and_failures_moved_aside(
    make_node: Callable[..., Node], folder: Path, photo: bytes, picture: np.ndarray
) -> None:
    node = make_node(http=None, watch=watched(folder))
    mask = folder / "results" / "photo.png_mask.png"
    with node.running():
        (folder / "photo.png").write_bytes(photo)
        (folder / "broken.png").write_bytes(photo[:100])
        (folder / "notes.txt").write_text("not for us")
        (folder / ".hidden.png").write_bytes(photo)
        wait(lambda: mask.is_file() and (folder / "failed" / "broken.png").is_file())
        expected = node.model.segment(picture).prediction.mask
        assert np.array_equal(np.asarray(Image.open(mask)) > 0, expected > 0)
        reason = (folder / "failed" / "broken.png.txt").read_text().splitlines()
        assert "damaged" in reason[0]
        assert reason[1:] == facts(node)
        assert sorted(path.name for path in (folder / "results").iterdir()) == [
            f"photo.png_{name}" for name in ("doubt.png", "mask.png", "overlay.png", "probability.png", "summary.json")
        ]
        assert (folder / "photo.png").is_file()
        written = mask.stat().st_mtime_ns
        time.sleep(1.5)
        assert mask.stat().st_mtime_ns == written
        Image.fromarray(picture[::-1]).save(folder / "photo.png")
        wait(lambda: mask.is_file() and mask.stat().st_mtime_ns != written)
        (folder / "photo.png").write_bytes(photo[:200])  # of the next patient, by a camera that uses names again
        wait(lambda: (folder / "failed" / "photo.png").is_file())
        assert not list((folder / "results").iterdir()), "which would be taken for those of the broken one"
    assert node.audit.path.read_text().count('"segmented"') == 2
    assert "photo" not in node.audit.path.read_text(), "names of files may be names of patients"


def test_pictures_of_one_name_do_not_share_results_and_strangers_masks_are_not_believed(
    make_node: Callable[..., Node], folder: Path, picture: np.ndarray
) -> None:
    Image.fromarray(picture).save(folder / "eye.png")
    Image.fromarray(picture[::-1]).save(folder / "eye.bmp")
    future = time.time() + 86_400
    os.utime(folder / "eye.png", (future, future))
    (folder / "results").mkdir()
    (folder / "results" / "eye.png_mask.png").write_bytes(b"another's")
    node = make_node(http=None, watch=watched(folder))
    masks = [folder / "results" / f"{name}_mask.png" for name in ("eye.png", "eye.bmp")]
    with node.running():
        wait(lambda: all(mask.is_file() and mask.stat().st_size > 20 for mask in masks))
        written = [mask.stat().st_mtime_ns for mask in masks]
        expected = [node.model.segment(turned).prediction.mask > 0 for turned in (picture, picture[::-1])]
        for mask, found in zip(masks, expected, strict=True):
            assert np.array_equal(np.asarray(Image.open(mask)) > 0, found)
        time.sleep(1.5)
        assert [mask.stat().st_mtime_ns for mask in masks] == written, "a clock that is ahead makes no work"
    os.utime(folder / "eye.png")
    with make_node(http=None, watch=watched(folder)).running() as again:
        time.sleep(2)
        assert [mask.stat().st_mtime_ns for mask in masks] == written, "what is in the file counts, not its time"
        (folder / "eye.bmp").unlink()
        watcher = again.parts[-1]
        wait(lambda: folder / "eye.bmp" not in watcher._done)
        assert not watcher._keys


def test_a_refusal_is_there_before_the_mask_and_goes_with_its_image(
    make_node: Callable[..., Node], folder: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "photo.png").write_bytes(photo)
    results = folder / "results"
    node = make_node(http=None, watch=watched(folder), refuse=0.0)
    render, seen = node.render, []

    def watched_render(job: int, name: str) -> bytes:
        seen.append((results / "photo.png_refused.txt").is_file())
        return render(job, name)

    node.parts[-1].render = watched_render
    with node.running():
        wait(lambda: (results / "photo.png_mask.png").is_file())
        said = (results / "photo.png_refused.txt").read_text().splitlines()
        assert said == ["refused: too uncertain; look at the image yourself", *facts(node)]
    assert seen
    assert all(seen)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "photo.png")
    with make_node(http=None, watch=watched(folder)).running():
        wait(lambda: not (results / "photo.png_refused.txt").exists() and (results / "photo.png_mask.png").exists())


def test_links_are_not_followed_and_nothing_is_overwritten_aside(
    make_node: Callable[..., Node], folder: Path, photo: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(http=None, watch=watched(folder))
    watcher = node.parts[-1]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(photo)
    with pytest.raises(OSError, match="symbolic"):
        watch._opened(folder / "link.png")
    (folder / "failed").symlink_to(elsewhere)
    path = folder / "broken.png"
    path.write_bytes(b"x")
    with pytest.raises(StorageError, match="link"):
        watcher._move_aside(path, watcher.folders[0], "why")
    (folder / "failed").unlink()
    watcher._move_aside(path, watcher.folders[0], "why")
    path.write_bytes(b"another")

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    replace = os.replace
    monkeypatch.setattr("d2ed2q.serve.watch.os.replace", lambda a, b: other_disk() if a == path else replace(a, b))
    watcher._move_aside(path, watcher.folders[0], "why else")
    assert not path.exists()
    aside = folder / "failed"
    assert (aside / "broken.png").read_bytes() == b"x"
    assert (aside / "broken-2.png").read_bytes() == b"another"
    assert (aside / "broken-2.png.txt").read_text().splitlines() == ["why else", *facts(node)]


def test_a_look_that_fails_is_not_the_last(make_node: Callable[..., Node], folder: Path) -> None:
    node = make_node(http=None, watch=watched(folder))
    watcher = node.parts[-1]
    watcher.seconds, looked = 0.01, []

    def look() -> None:
        looked.append(1)
        raise RuntimeError

    watcher.look = look
    watcher.start()
    wait(lambda: len(looked) > 2)
    assert watcher.alive
    watcher.stop()


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
        wait(lambda: (folder / "results" / "photo.png_mask.png").is_file())
        assert again.store.counts()["done"] == 1


def test_a_full_queue_lets_files_wait(make_node: Callable[..., Node], folder: Path, picture: np.ndarray) -> None:
    for number in range(5):
        Image.fromarray(np.roll(picture, number, axis=0)).save(folder / f"photo{number}.png")
    with make_node(http=None, watch=watched(folder), queue=QueueSettings(waiting=1)).running():
        wait(lambda: len(list((folder / "results").glob("*_mask.png"))) == 5)
