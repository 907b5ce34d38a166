"""The page of a node in a real browser: Chromium without a window, phone and desktop, light and dark."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2ed2q.serve.access import new_token
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings

from ..data.dicom_files import OP8, as_bytes, make_dicom
from .helpers import served

pytestmark = pytest.mark.integration
PICTURES = os.environ.get("D2ED2Q_PICTURES")  # where pictures of the page are kept, to be looked at
TEAL = """() => {
    const c = document.getElementById('canvas');
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 0; i < d.length; i += 4) if (d[i + 1] > d[i] + 25 && d[i + 2] > d[i] + 25) n++;
    return n;
}"""
MARKED = """() => {
    const c = document.getElementById('canvas');
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    const [before, mask] = [state.image.data, state.maps.mask.data];
    let [both, either] = [0, 0];
    for (let i = 0; i < d.length; i += 4) {
        const marked = d[i] !== before[i] || d[i + 1] !== before[i + 1] || d[i + 2] !== before[i + 2];
        both += marked && mask[i] > 0;
        either += marked || mask[i] > 0;
    }
    return [both, either];
}"""
FOCUS = "document.activeElement.id || document.activeElement.name || document.activeElement.tagName"
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed here")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serve(make_node: Callable[..., Node]) -> Iterator[Callable[..., str]]:
    """Starts a node; gives its address."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> str:
            return f"http://127.0.0.1:{stack.enter_context(served(make_node(**changes)))}/"

        yield start


def open_page(browser: Any, address: str, size: str = "desktop", scheme: str = "light") -> tuple[Any, list[str]]:
    """A page, and what it asked other hosts for or complained of."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    odd: list[str] = []
    page.on("request", lambda r: odd.append(r.url) if not r.url.startswith((address, "blob:")) else None)
    page.on("console", lambda message: odd.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: odd.append(str(error)))
    page.goto(address)
    page.wait_for_function("() => document.getElementById('model').textContent !== 'd2ed2q node'")
    return page, odd


def look(page: Any, name: str) -> None:
    if PICTURES is not None:
        Path(PICTURES).mkdir(exist_ok=True)
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def text_chunks(data: bytes) -> dict[str, str]:
    """The texts of a PNG file, and that every chunk's checksum is right, which readers of pixels do not look at."""
    texts, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, value = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + value)
        if kind == b"tEXt":
            keyword, _, text = value.decode("latin-1").partition("\0")
            texts[keyword] = text
        place += 12 + length
    return texts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_an_image_is_dropped_and_looked_at(
    size: str, scheme: str, browser: Any, serve: Callable[..., str], photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    page, odd = open_page(browser, serve(), size, scheme)
    look(page, f"empty-{size}-{scheme}")
    page.set_input_files("#file", str(tmp_path / "photo.png"))
    page.wait_for_selector("#result:not([hidden])")
    assert page.text_content("#status") == "Done."
    assert page.is_hidden("#refused")
    look(page, f"result-{size}-{scheme}")

    def found() -> int:
        """Pixels of the canvas that are teal."""
        return int(page.evaluate(TEAL))

    before = found()
    both, either = page.evaluate(MARKED)
    assert both == either > 0, "at the model's own threshold the overlay is the node's mask"
    page.fill("#threshold", "250")
    assert page.text_content("#value") == "0.98"
    fewer = found()
    page.fill("#threshold", "5")
    assert found() > before >= fewer
    with page.expect_download() as download:
        page.click("#mask")
    path = tmp_path / "mask.png"
    download.value.save_as(path)
    sha256 = page.evaluate("state.card.sha256")
    assert download.value.suggested_filename == f"photo_mask_at_0.02_{sha256[:16]}_research_use_only.png"
    assert set(np.unique(np.asarray(Image.open(path))[..., 0])) <= {0, 255}
    said = text_chunks(path.read_bytes())
    own = page.evaluate("state.card.threshold")
    assert said == {
        "Comment": "research use only; not a medical device",
        "Model-SHA256": sha256,
        "Refused": "no",
        "Threshold": f"0.02 (the model's own: {own:.2f})",
    }
    page.click("#reset")
    for view in ("probability", "doubt", "learner-meta", "learner-base_1", "image"):
        page.check(f'input[name="view"][value="{view}"]')
        page.wait_for_function(f"() => state.maps['{view}'] !== undefined")
        assert page.text_content("#status") == "Done."
        look(page, f"{view}-{size}-{scheme}")
    page.click("summary")
    assert "Research use only" in (page.text_content("#text") or "")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    assert odd == []


def test_it_can_be_used_with_the_keyboard_alone(
    browser: Any, serve: Callable[..., str], photo: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    page, odd = open_page(browser, serve())
    page.on("filechooser", lambda _: None)  # the browser is told in time that somebody waits for it
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(tmp_path / "photo.png"))
    page.wait_for_selector("#result:not([hidden])")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUS))
    named = [name for name in reached if name in ("view", "threshold", "reset", "mask", "SUMMARY")]
    assert list(dict.fromkeys(named)) == ["view", "threshold", "reset", "mask", "SUMMARY"]
    assert odd == []


def test_refused_dicom_tokens_and_errors(
    browser: Any, serve: Callable[..., str], picture: np.ndarray, tmp_path: Path
) -> None:
    token, digest = new_token()
    (tmp_path / "image.dcm").write_bytes(as_bytes(make_dicom(picture, OP8)))
    (tmp_path / "broken.png").write_bytes(b"no image")
    page, _ = open_page(browser, serve(refuse=0.0, http=HttpSettings(tokens={"me": digest})))
    page.set_input_files("#file", str(tmp_path / "image.dcm"))
    page.wait_for_selector("#access:not([hidden])")
    page.fill("#token", token)
    page.keyboard.press("Enter")  # and the same image is sent again
    page.wait_for_selector("#result:not([hidden])")
    assert page.is_visible("#refused")
    look(page, "refused")
    page.fill("#threshold", "5")
    with page.expect_download() as download:
        page.click("#mask")
    download.value.save_as(tmp_path / "mask.png")
    assert re.fullmatch(
        r"image_mask_at_0\.02_[0-9a-f]{16}_refused_research_use_only\.png", download.value.suggested_filename
    )
    assert text_chunks((tmp_path / "mask.png").read_bytes())["Refused"] == "yes"
    with page.expect_download() as download:
        page.click("#segmentation")
    assert download.value.suggested_filename == "image_segmentation.dcm"
    page.set_input_files("#file", str(tmp_path / "broken.png"))
    page.wait_for_function("() => document.getElementById('status').textContent.includes('broken.png: ')")
    assert page.is_hidden("#result")


@pytest.mark.parametrize("size", list(SIZES))
def test_the_interface_for_programs_is_a_page_too(size: str, browser: Any, serve: Callable[..., str]) -> None:
    page, odd = open_page(browser, serve(), size)
    page.click("text=Interface for programs")
    page.wait_for_selector("h3")
    look(page, f"docs-{size}")
    assert page.locator("h3").count() > 8
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing hangs over the edge"
    assert odd == []
