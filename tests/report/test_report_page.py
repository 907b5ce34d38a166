from __future__ import annotations

import base64
import dataclasses
import io
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2ed2q.errors import DataError, StorageError
from d2ed2q.report import Example, RunReport, WeightHistogram, draw_hero, render_report, write_report

SECTIONS = ["run", "examples", "figures", "curves", "training", "weights", "diversity", "provenance"]
VOID = ("meta", "img", "br")
HOSTILE = '<script>alert("x")</script>&amp;\'"'


class Page(HTMLParser):
    """What a browser would find in a page; tags that do not match and rows of different width raise."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: list[str] = []
        self.text = ""
        self.widths: list[int] = []  # of the rows of the current table
        self.reaching = 0  # cells of the row above that reach into the next
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")
        elif tag == "table":
            self.widths, self.reaching = [], 0
        elif tag == "tr":
            self.widths.append(self.reaching)
            self.reaching = 0
        elif tag in ("th", "td"):
            self.widths[-1] += 1
            self.reaching += int(dict(attrs).get("rowspan") or 1) - 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            assert len(set(self.widths)) == 1
            assert self.reaching == 0

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def full(report: RunReport) -> str:
    return render_report(report)


@pytest.fixture(scope="module")
def minimal() -> str:
    return render_report(RunReport("Nothing but a name"))


def test_tables_of_objects_and_classes_fit_their_headings(report: RunReport) -> None:
    classes = {"anterior": {"dice": 0.87}, "posterior": {"dice": 0.85}}
    scopes = {"whole": {"meta": {"dice": 0.86, "per_class": classes}}}
    objects = {"object_f1": 0.75, "object_dice": 0.8, "objects_found": 7, "objects_true": 8}
    for full_precision in (None, {"scopes": scopes, "objects": objects}, {"scopes": scopes}):
        evaluation = {**report.evaluation, "scopes": scopes, "objects": objects, "full_precision": full_precision}
        page = Page(render_report(dataclasses.replace(report, evaluation=evaluation)))
        assert "posterior" in page.text
        assert "7 found, 8 true" in page.text


def test_every_section_is_there_with_its_figures(full: str) -> None:
    page = Page(full)
    assert page.sections == SECTIONS
    assert page.open == []
    for shown in (
        "0.8145",
        "full precision 0.8154",
        "Dice 0.800",
        "0.1092",
        "centre",
        "01_test",
        "torch 2.13",
        "503,236",
    ):
        assert shown in page.text
    assert "base.0.encoder.3.conv.weight" in page.text
    assert "not measured." not in page.text.replace("– means not measured.", "")
    assert [tag for tag, _, value in page.attributes if value == "img"] == ["svg"] * 10
    assert page.text.count("Research use only") == 2


def test_a_run_with_nothing_measured_says_so_in_every_section(minimal: str) -> None:
    page = Page(minimal)
    assert page.sections == SECTIONS
    for part in re.split(r"<section", minimal)[1:]:
        assert "not measured" in part
    assert "<svg" not in minimal
    assert "<img" not in minimal
    assert "None" not in page.text
    assert "nan" not in page.text.split()


@pytest.mark.parametrize("which", ["full", "minimal"])
def test_nothing_comes_from_outside(which: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(which)
    page = Page(text)
    addresses = [
        value for name in ("src", "href", "xlink:href", "srcset", "action", "data") for value in page.values(name)
    ]
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert not re.search(r"https?:|//\w+\.\w+/|@import|<script|<link|<iframe|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_finds_one(full: str) -> None:
    page = Page(full)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for value in page.values("href") if value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", full))
    assert wanted
    assert wanted <= set(ids)


def test_hostile_names_are_only_text(report: RunReport) -> None:
    evaluation: dict[str, Any] = {
        "prediction": HOSTILE,
        "scopes": {HOSTILE: {HOSTILE: {"dice": 0.5, "per_class": {HOSTILE: {"dice": 0.5}}}}},
        "diversity": {"cka": {HOSTILE: 0.5}},
        "images": [HOSTILE],
    }
    evaluation["scopes"][HOSTILE][HOSTILE]["per_image"] = {"dice": {"mean": 0.5, "std": None, "values": [0.5]}}
    hostile = RunReport(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE, "bits": HOSTILE},
        history=[{"kind": "train", "phase": HOSTILE, "epoch": 1, "loss": 1.0}],
        evaluation=evaluation,
        curves={"few_bit": {HOSTILE: report.curves["few_bit"]["meta"]}},  # type: ignore[index]
        weights=[dataclasses.replace(report.weights[0], name=HOSTILE)],
        examples=[dataclasses.replace(report.examples[0], id=HOSTILE)],
        provenance={HOSTILE: HOSTILE},
    )
    text = render_report(hostile)
    page = Page(text)
    assert "<script" not in text
    assert page.text.count(HOSTILE) >= 15
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert f"Image of {HOSTILE}" in page.values("alt")


def test_the_same_report_gives_the_same_bytes(report: RunReport, full: str) -> None:
    assert render_report(report) == full


def test_pictures_are_pngs_of_the_size_they_claim(full: str) -> None:
    page = Page(full)
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "width")] == ["48"] * 12
    assert len(page.values("src")) == 12
    for source in page.values("src"):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert picture.format == "PNG"
            assert picture.size == (48, 48)
            assert len(np.unique(np.asarray(picture))) > 10  # something is drawn


def test_nothing_is_drawn_outside_the_region_of_interest(make_example: Callable[..., Example]) -> None:
    whole = make_example("best")
    everywhere = dataclasses.replace(whole, mask=np.ones_like(whole.mask), uncertainty=np.ones(whole.mask.shape))
    page = Page(render_report(RunReport("x", examples=[everywhere])))
    _, drawn, _, uncertain = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in page.values("src")
    )
    assert whole.roi is not None
    assert (drawn[~whole.roi] == 0).all()
    assert (uncertain[~whole.roi] < 10).all()
    assert (uncertain[whole.roi].max(axis=-1) > 200).all()


def test_a_page_of_large_photographs_stays_small_and_quick(
    report: RunReport, make_example: Callable[..., Example], make_layers: Callable[..., list[WeightHistogram]]
) -> None:
    large = dataclasses.replace(
        report,
        examples=[make_example(role, 1000) for role in ("best", "median", "worst")],
        weights=make_layers(4, 20_000),
    )
    began = time.process_time()
    text = render_report(large)
    assert time.process_time() - began < 8
    assert len(text.encode()) < 6_000_000
    assert [value for tag, name, value in Page(text).attributes if (tag, name) == ("img", "width")] == ["440"] * 12


def test_runs_of_several_classes_render(report: RunReport) -> None:
    classes = {"background": {"dice": 0.99, "iou": 0.98}, "anterior": {"dice": 0.87, "iou": None}}
    figures = {"dice": 0.87, "iou": 0.8, "accuracy": 0.99, "ece": 0.01, "per_class": classes}
    evaluation = {"prediction": "ensemble", "scopes": {"whole": {"ensemble": figures}}, "full_precision": None}
    text = Page(render_report(RunReport("classes", evaluation=evaluation))).text
    assert "class by class, on the whole image" in text
    assert "anterior" in text
    assert "ROC-AUC" not in text
    assert "Full precision: not measured." in text


def test_the_page_is_written_whole(report: RunReport, full: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(path, report) == path
    assert path.read_text(encoding="utf-8") == full
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StorageError, match="disk is full"):
        write_report(path, RunReport("new"))
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_readme_picture_shows_the_median_example(report: RunReport, tmp_path: Path) -> None:
    path = draw_hero(tmp_path / "hero.png", report.examples)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 2.5 * picture.height
        colors = np.asarray(picture.convert("RGB"))
    assert (colors == 255).all(axis=-1).any()
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 500
    median = draw_hero(tmp_path / "median.png", [report.examples[1]])
    assert path.read_bytes() == median.read_bytes()
    with pytest.raises(DataError, match="no example"):
        draw_hero(path, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "typical"}, "best, median or worst"),
        ({"image": np.zeros((48, 48), np.uint8)}, "H×W×3"),
        ({"mask": np.zeros((48, 47), bool)}, "mask of example best_test"),
        ({"roi": np.zeros((2, 2), bool)}, "roi of example best_test"),
    ],
)
def test_examples_that_do_not_fit_together_are_refused(
    make_example: Callable[..., Example], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(make_example("best"), **change)
