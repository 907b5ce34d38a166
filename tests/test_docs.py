"""The documentation: its code runs, its commands parse, its links lead somewhere, its tables are the code's."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d2ed2q import cli
from d2ed2q.backbones import backbone_names, build_backbone
from d2ed2q.data import check_dataset, make_phantom, open_dataset, write_phantom_dataset
from d2ed2q.data.datasets import LAYOUTS
from d2ed2q.deploy import read_bundle
from d2ed2q.deploy.bundle import PARTS
from d2ed2q.errors import CheckpointError, ConfigError
from d2ed2q.quantization import CODEBOOKS, make_codebook
from d2ed2q.recipes.config import read_values
from d2ed2q.recipes.export import export
from d2ed2q.recipes.paper import evaluate_paper, train_paper
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import ExportSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.verbs import VERBS

from .pages import NAMES, ROOT, blocks, commands, text_of


def run_blocks(name: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Runs the Python of one page from top to bottom, all in one namespace; sessions (pycon) as doctests."""
    every = [(line, text, "python") for line, text in blocks(name, "python")]
    every += [(line, text, "pycon") for line, text in blocks(name, "pycon")]
    for line, text, language in sorted(every):
        if language == "pycon":
            test = doctest.DocTestParser().get_doctest(text, namespace, name, str(ROOT / name), line)
            report: list[str] = []
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(test, out=report.append, clear_globs=False)
            namespace.update(test.globs)
            assert runner.summarize(verbose=False).failed == 0, "".join(report)
        else:
            code = compile("\n" * line + text, str(ROOT / name), "exec", dont_inherit=True)
            exec(code, namespace)
    return namespace


def own_network() -> dict[str, Any]:
    """What a page calls the reader's own: a network, its optimizer, and a few steps of retraining."""
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)

    def retrain(network: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            torch.autograd.backward(network(torch.rand(2, 3, 8, 8)).square().mean())
            optimizer.step()

    return {"network": network, "optimizer": optimizer, "retrain": retrain}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/planning.md"])
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "CONTRIBUTING.md":
        assert run_blocks(name, {})["logits"].shape == (4, 1, 1, 50, 40)
    else:
        run_blocks(name, own_network())


def test_the_code_about_the_method_runs() -> None:
    own = own_network()
    network = own["network"]
    run_blocks("docs/method.md", own)
    # The first of the two snippets quantized it to four bits, the second made nothing more than a plan.
    assert all(len(torch.unique(channel)) <= 15 for channel in network[0].weight)
    assert own["quantizer"].bits == {"0.weight": 8, "3.weight": 4}
    assert own["quantizer"].step == 0


def test_the_code_about_networks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_blocks("docs/networks.md", {})
    assert namespace["logits"].shape == (4, 1, 1, 50, 40)
    assert {"model.0", "model.1.submodule.0"} <= set(namespace["names"])
    # The page's own file, and the command that names it.
    source = text_of("docs/networks.md").split("<!-- mynets.py -->\n```python\n")[1].split("```")[0]
    Path("mynets.py").write_text(source, encoding="utf-8")
    (words,) = (words for words in commands("docs/networks.md") if words[:2] == ["d2ed2q", "train"])
    settings = cli._parse("train", TrainSettings, words[2:])
    assert isinstance(settings, TrainSettings)
    for dims in (2, 3):
        network = build_backbone(settings.backbone, 1, 2, dims=dims, taps=settings.taps)
        assert len(network.taps) == len(settings.taps) == 3
        assert network.dims == dims
    sys.modules.pop("mynets")


def test_the_table_of_backbones_is_the_code() -> None:
    section = text_of("docs/networks.md").split("\n## Backbones\n")[1].split("\n## ")[0]
    documented = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row[:3] == "| `"]
    assert tuple(row[0].strip("`") for row in documented) == backbone_names()

    def spelled(taps: str) -> list[str]:
        """``encoder1…3, centre`` as single names."""
        names: list[str] = []
        for part in taps.split(", "):
            kind, first, last = re.fullmatch(r"([a-z]+)(\d*)…?(\d*)", part).groups()  # type: ignore[union-attr]
            start, end = int(first or 0), int(last or first or 0)
            step = 1 if end >= start else -1
            names += [f"{kind}{level or ''}" for level in range(start, end + step, step)]
        return names

    for cell, _, parameters, gflop, stride, axes, taps in documented:
        name = cell.strip("`")
        with torch.device("meta"):
            network = build_backbone(name, 3, 1).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(torch.empty(1, 3, 256, 256))
        assert parameters == f"{sum(p.numel() for p in network.parameters()):,}", name
        assert gflop == f"{counter.get_total_flops() / 1e9:.1f}", name
        assert int(stride) == network.stride, name
        assert axes == ("2, 3" if name in backbone_names(3) else "2"), name
        assert spelled(taps) == [tap.name for tap in network.taps], name


def test_the_code_about_data_runs_and_its_dataset_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_blocks("docs/data.md", {"__name__": "hrf"})
    for seed, group in enumerate(("dr", "g", "h")):
        for number in (1, 2, 6):
            phantom = make_phantom(10 * seed + number, (64, 64))
            for folder, suffix, picture in (
                ("images", ".png", phantom.image),
                ("manual1", ".tif", phantom.mask),
                ("mask", "_mask.tif", phantom.roi),
            ):
                path = tmp_path / "HRF" / folder / f"{number:02d}_{group}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture if picture.ndim == 3 else picture.astype(np.uint8) * 255).save(path)
    layout = SimpleNamespace(**{name: namespace[name] for name in namespace["__all__"]})
    monkeypatch.setitem(LAYOUTS, "hrf", layout)
    assert check_dataset(tmp_path / "HRF", "hrf").ok
    dataset = open_dataset(tmp_path / "HRF", "hrf")
    assert [case.id for case in dataset.test] == ["06_dr", "06_g", "06_h"]
    assert len(dataset.train) == 6
    sample = dataset.read(dataset.train[0])
    assert sample.roi is not None
    assert sample.label is not None
    assert torch.equal(sample.label, torch.from_numpy(make_phantom(1, (64, 64)).mask).long())
    (tmp_path / "HRF" / "manual1" / "01_h.tif").unlink()
    assert [path.name for path in check_dataset(tmp_path / "HRF", "hrf").orphans] == ["01_h.png"]


def test_the_code_about_training_runs_and_leaves_what_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_blocks("docs/training.md", {})
    assert namespace["prediction"].mask.shape == (64, 64)
    page = text_of("docs/training.md")
    documented = re.findall(r"^\| `([\w.]+)/?` \| (?:at|each|see|after|last|by)", page, re.MULTILINE)
    assert sorted(documented) == sorted(path.name for path in Path("RUN").iterdir())
    assert set(documented) <= {path.name for path in vars(RunFolder(Path("RUN"))).values()}
    (structure,) = (text for _, text in blocks("docs/training.md", "text") if "scopes" in text)
    words = set(re.findall(r"\w+", structure)) | {"base_1", "base_2"}
    result = namespace["result"]
    figures = result["scopes"]["fov"]["meta"]
    for keys in (result, result["scopes"], result["scopes"]["fov"], figures, result["dataset"], result["diversity"]):
        assert set(keys) <= words
    assert set(figures["per_image"]["dice"]) <= words
    # Whatever is promised of every figure but calibration's four is kept.
    pooled_only = {"ece", "brier", "nll", "aurc", "per_image", "scope", "threshold", "images", "pixels", "surface_unit"}
    assert set(figures["per_image"]) == set(figures) - pooled_only
    rows = [json.loads(line) for line in Path("RUN/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert set(row) <= set(re.findall(r"`(\w+)`", page)), row["kind"]


def test_the_code_about_deployment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phantom_dataset(Path("data"), n_train=4, n_test=1, size=(64, 64), seed=0)
    settings = TrainSettings(
        data=Path("data"),
        out=Path("RUN"),
        backbone="unet-xs",
        learners=2,
        epochs=1,
        epochs_q=1,
        crop=(32, 32),
        tta="none",
    )
    train(settings)
    export(ExportSettings(run=Path("RUN"), out=Path("model.d2q"), tolerance=100))
    Image.fromarray(make_phantom(3, (64, 64)).image[:40, :50]).save("photo.png")
    assert run_blocks("docs/deployment.md", {})["prediction"].mask.shape == (40, 50)
    manifest = json.loads(read_bundle(Path("model.d2q")).manifest.to_json())
    documented = set(re.findall(r"`(\w+)`", text_of("docs/bundle.md").split("## The manifest")[1]))
    for key, value in manifest.items():
        assert key in documented
        if isinstance(value, dict) and key not in ("parts", "provenance"):
            assert set(value) <= documented, key
    assert set(manifest["provenance"]) <= documented
    named = set(re.findall(r"^\| `([\w.]+)` \|", text_of("docs/bundle.md"), re.MULTILINE))
    assert set(manifest["parts"]) == set(PARTS) <= named


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", dirs_exist_ok=True)
    for page, file in (("docs/training.md", "settings.toml"), ("docs/planning.md", "plan.toml")):
        for _, text in blocks(page, "toml"):
            (tmp_path / file).write_text(text, encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(name):
        if words[0] == "d2ed2q":
            if words[1:] not in (["--help"], ["--version"]):
                verb, rest = cli._choose(words[1:])
                settings = VERBS[verb][0]
                assert isinstance(cli._parse(verb, settings, rest), settings)
        elif words[:2] == ["python", "train.py"]:
            with pytest.raises(ConfigError, match="no dataset folder"):  # every option was taken, and no data is here
                train_paper(words[2:])
        elif words[:2] == ["python", "eval.py"]:
            with pytest.raises(CheckpointError, match="no weights file"):
                evaluate_paper(words[2:])
        elif words[0] == "make":
            assert set(words[1:]) <= targets
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words


def test_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        cli._parse("train", TrainSettings, ["--data", "d", "--out", "o", "--no-such-option", "1"])


def test_the_configuration_file_is_valid(tmp_path: Path) -> None:
    ((_, text),) = blocks("docs/training.md", "toml")
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    assert read_values(tmp_path / "settings.toml", TrainSettings)["crop"] == (192, 192)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(name), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_are_named_exist(name: str) -> None:
    for path, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text_of(name)):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert not test or test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize(
    ("heading", "settings"), [("Settings", TrainSettings), ("Other bits, and how few", QuantizeSettings)]
)
def test_every_setting_is_in_the_table_with_its_default(heading: str, settings: type[Any]) -> None:
    section = text_of("docs/training.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, re.MULTILINE)

    def shown(field: dataclasses.Field[Any]) -> str:
        if field.default is dataclasses.MISSING:
            return "required"
        return "not set" if field.default is None else f"`{json.dumps(field.default)}`"

    assert documented == [(field.name, shown(field)) for field in dataclasses.fields(settings)]


def test_the_table_of_codebooks_is_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|((?: \d+ \|)+)$", text_of("docs/method.md"), re.MULTILINE)
    documented = {name: [int(number) for number in re.findall(r"\d+", row)] for name, row in rows}
    weight = torch.randn(4, 50)
    actual = {name: [make_codebook(weight, bits, name).levels.shape[-1] for bits in range(2, 9)] for name in CODEBOOKS}
    assert documented == actual


def test_data_check_says_what_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path("mydata")
    write_phantom_dataset(data, n_train=4, n_test=2, size=(64, 64), seed=0)
    (data / "masks/phantom_001.png").unlink()
    Image.fromarray(np.zeros((64, 60), np.uint8)).save(data / "masks/phantom_002.png")
    with Image.open(data / "masks/phantom_003.png") as mask:
        dull = np.asarray(mask) // 255 * 77
    Image.fromarray(dull).save(data / "masks/phantom_003.png")
    (documented,) = (text for _, text in blocks("docs/data.md", "text") if "problems:" in text)
    problems = check_dataset(data).problems
    assert documented == f"{len(problems)} problems:\n" + "".join(f"- {problem}\n" for problem in problems)


def test_the_changelog_has_the_packages_version() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    assert f"## [{version}] - " in text_of("CHANGELOG.md")
