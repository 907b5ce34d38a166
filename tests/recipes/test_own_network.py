"""Networks that we did not write, by the names of their submodules: trained, quantized, exported and measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2ed2q.cli import main
from d2ed2q.data import open_dataset
from d2ed2q.recipes.run_folder import RunFolder

NETWORKS = """
from monai.networks.nets import AttentionUnet, BasicUNet, UNet


def unet(in_channels, n_classes):
    return UNet(2, in_channels, n_classes, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


def attention(in_channels, n_classes):
    return AttentionUnet(2, in_channels, n_classes, channels=(8, 16, 32), strides=(2, 2))


def basic(in_channels, n_classes):
    return BasicUNet(3, in_channels, n_classes, features=(8, 8, 16, 16, 16, 8))
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user, in the folder that they work in."""
    (tmp_path / "users_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    yield "users_networks"
    sys.modules.pop("users_networks", None)


@pytest.mark.parametrize(
    ("name", "taps"),
    [("unet", ["model.0", "model.1.submodule.0", "model.1.submodule.1"]), ("attention", ["model.0", "model.1"])],
)
def test_a_network_of_others_goes_all_the_way(name: str, taps: list[str], networks: str, phantoms: Path) -> None:
    options = ["--epochs", "2", "--epochs-q", "1", "--crop", "48", "48", "--batch-size", "2", "--learners", "2"]
    options += ["--tta", "none", "--precision", "fp32", "--backbone", f"{networks}:{name}", "--taps", *taps]
    assert main(["train", "--data", str(phantoms), "--out", "run", *options]) == 0
    card = RunFolder(Path("run")).read_card()
    assert (card.backbone, card.taps) == (f"{networks}:{name}", tuple(taps))
    assert main(["evaluate", "run"]) == 0
    assert main(["inspect", "run"]) == 0
    assert main(["export", "run", "-o", "model.d2q", "--tolerance", "100"]) == 0
    assert main(["inspect", "model.d2q"]) == 0
    photo = open_dataset(phantoms).test[0].image
    assert main(["predict", "model.d2q", str(photo), "--out", "masks"]) == 0
    assert main(["bench", "model.d2q", "--size", "64", "64", "--runs", "3", "--out", "bench.json"]) == 0
    rows = json.loads(Path("bench.json").read_text())["rows"]
    assert {"ensemble", "one float network"} == {row["network"] for row in rows}
