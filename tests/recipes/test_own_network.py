"""Networks that we did not write, by the names of their submodules: trained, quantized, exported and measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from d2ed2q.cli import main
from d2ed2q.data import open_dataset
from d2ed2q.recipes.run_folder import RunFolder

NETWORKS = """
from monai.networks.nets import AttentionUnet, SegResNet, UNet


def unet(in_channels, n_classes):
    return UNet(2, in_channels, n_classes, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


def attention(in_channels, n_classes):
    return AttentionUnet(2, in_channels, n_classes, channels=(8, 16, 32), strides=(2, 2))


def volumes(in_channels, n_classes):
    blocks = {"blocks_down": (1, 1), "blocks_up": (1,)}
    return SegResNet(3, 8, in_channels, n_classes, use_conv_final=True, **blocks)
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user, in the folder that they work in."""
    (tmp_path / "users_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    yield "users_networks"
    sys.modules.pop("users_networks", None)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Five small volumes with a bright box in each, in nnU-Net's layout."""
    root, rng = tmp_path / "scans", np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / name).mkdir(parents=True)
    for index in range(5):
        label = np.zeros((20, 24, 16), np.uint8)
        label[4 + index : 12 + index, 6:18, 3:12] = 1
        image = (rng.normal(0, 1, label.shape) + 3 * label).astype(np.float32)
        part = "Ts" if index == 4 else "Tr"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), root / f"images{part}" / f"scan{index}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / f"labels{part}" / f"scan{index}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "box": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def whole_way(data: Path, photo: Path, backbone: str, taps: list[str], crop: list[str]) -> None:
    options = ["--epochs", "2", "--epochs-q", "1", "--crop", *crop, "--batch-size", "2", "--learners", "2"]
    options += ["--tta", "none", "--precision", "fp32", "--backbone", backbone, "--taps", *taps]
    assert main(["train", "--data", str(data), "--out", "run", *options]) == 0
    card = RunFolder(Path("run")).read_card()
    assert (card.backbone, card.taps) == (backbone, tuple(taps))
    assert main(["evaluate", "run"]) == 0
    assert main(["inspect", "run"]) == 0
    assert main(["export", "run", "-o", "model.d2q", "--tolerance", "100"]) == 0
    assert main(["inspect", "model.d2q"]) == 0
    assert main(["predict", "model.d2q", str(photo), "--out", "masks"]) == 0


def measured(backbone: str, engine: str, size: list[str]) -> None:
    options = ["--backbone", backbone, "--engine", engine, "--out", "bench.json"]
    assert main(["bench", "model.d2q", "--size", *size, "--runs", "3", *options]) == 0
    result = json.loads(Path("bench.json").read_text())
    assert {"ensemble", "one float network"} == {row["network"] for row in result["rows"]}
    engines = {row["engine"] for row in result["rows"]}
    assert engines == ({"openvino", "onnxruntime", "torch"} if engine == "all" else {engine})
    assert not any("openvino" in what or "onnxruntime" in what for what in result["left_out"])


@pytest.mark.usefixtures("one_round")
@pytest.mark.parametrize(
    ("name", "taps", "engine"),
    [
        ("unet", ["model.0", "model.1.submodule.0", "model.1.submodule.1"], "torch"),
        # Exporting a network takes the better part of a minute, and its engines are measured in processes of their own.
        pytest.param("attention", ["model.0", "model.1"], "all", marks=pytest.mark.integration),
    ],
)
def test_a_network_of_others_goes_all_the_way(
    name: str, taps: list[str], engine: str, networks: str, phantoms: Path
) -> None:
    photo = open_dataset(phantoms).test[0].image
    whole_way(phantoms, photo, f"{networks}:{name}", taps, ["48", "48"])
    measured(f"{networks}:{name}", engine, ["64", "64"])


@pytest.mark.usefixtures("one_round")
def test_a_network_of_others_for_volumes_goes_all_the_way(networks: str, scans: Path) -> None:
    scan = scans / "imagesTs" / "scan4_0000.nii.gz"
    crop = ["16", "16", "16"]
    whole_way(scans, scan, f"{networks}:volumes", ["convInit", "down_layers.1", "up_layers.0"], crop)
    measured(f"{networks}:volumes", "openvino", crop)
    # Without --backbone, what the bundle names is not imported.
    options = ["--engine", "onnxruntime", "--out", "alone.json"]
    assert main(["bench", "model.d2q", "--size", *crop, "--runs", "3", *options]) == 0
    result = json.loads(Path("alone.json").read_text())
    assert {row["network"] for row in result["rows"]} == {"ensemble"}
    assert "a bundle's word does not run" in result["left_out"]["one float network"]
