from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.deploy import read_bundle
from d2ed2q.errors import ConfigError, MissingExtraError
from d2ed2q.recipes.bench import bench
from d2ed2q.recipes.measurements import Job, _in_process, measure, operations
from d2ed2q.recipes.settings import BenchSettings


def test_every_engine_is_measured_beside_one_float_network(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", str(bundle), "--size", "32", "48", "--runs", "3", "--threads", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(out.read_text())
    measured = {(row["network"], row["engine"]) for row in result["rows"]}
    engines = ("openvino", "onnxruntime", "torch")
    assert measured == {(network, engine) for network in ("ensemble", "one float network") for engine in engines}
    for row in result["rows"]:
        assert len(row["seconds"]) == 6
        assert 0 < row["median_seconds"] <= row["p95_seconds"]
        assert row["images_per_second"] > 0
        assert row["peak_memory"] > 2**25
        assert row["load_seconds"] > 0
    rows = {(row["network"], row["engine"]): row for row in result["rows"]}
    name = "ensemble in openvino / one float network in torch"
    wanted = rows["ensemble", "openvino"]["median_seconds"] / rows["one float network", "torch"]["median_seconds"]
    assert result["ratios"][name] == pytest.approx(wanted)
    assert name in " ".join(shown.split())
    assert rows["ensemble", "openvino"]["bytes"] == bundle.stat().st_size
    assert rows["one float network", "torch"]["bytes"] == 4 * read_bundle(bundle).manifest.weights.learner_parameters
    assert result["int8_peak"] > 1e9
    picture = np.asarray(Image.open(out.with_suffix(".png")).convert("L"))
    assert picture.std() > 5, "something is drawn"


def test_operations_are_counted_by_hand() -> None:
    import torch
    from torch import nn

    from d2ed2q.backbones import StagedNetwork
    from d2ed2q.backbones.staged import TapHook
    from d2ed2q.deploy.graph import learner_graph

    class Two(StagedNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.in_channels, self.n_classes, self.stride, self.taps = 3, 1, 2, ()
            self.down, self.up = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 1, 2, stride=2)

        def run_stages(self, x: torch.Tensor, at_tap: TapHook) -> torch.Tensor:
            result: torch.Tensor = self.up(self.down(x))
            return result

    model = learner_graph(Two()).model.SerializeToString()
    assert operations(model, 3, (10, 12)) == 2 * (5 * 6 * 8 * 3 * 4 + 5 * 6 * 8 * 1 * 4)


def test_memory_of_the_parent_does_not_count(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(read_bundle(bundle).model)
    job = Job("onnxruntime", str(tmp_path / "model.onnx"), 3, 1, (32, 32), 3, 1)
    ballast = np.ones(2**28, np.float64)  # 2 GiB
    assert measure(job)["peak_memory"] < 2**30
    assert ballast.sum() == 2**28


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_measurement() -> None:
    with pytest.raises(ConfigError, match="memory ran out"):
        _in_process(_die, None)


def test_sizes_that_the_model_does_not_take_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        bench(BenchSettings(model=bundle, size=(30, 32)))
    with pytest.raises(ConfigError, match="at least 3"):
        BenchSettings(model=bundle, runs=1)
    with pytest.raises(ConfigError, match=r"must end in \.json"):
        BenchSettings(model=bundle, out=Path("bench.png"))
    with pytest.raises(ConfigError, match="from 1 to 1024"):
        BenchSettings(model=bundle, threads=-1)


def test_one_engine_alone_is_measured_if_it_is_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BenchSettings(model=bundle, size=(32, 32), runs=3, engine="onnxruntime")
    rows = bench(settings)["rows"]
    assert {(row["network"], row["engine"]) for row in rows} == {
        ("ensemble", "onnxruntime"),
        ("one float network", "onnxruntime"),
    }
    monkeypatch.setattr("d2ed2q.deploy.engines.available_engines", lambda: ["openvino"])
    with pytest.raises(MissingExtraError, match=r"d2ed2q\[runtime\]"):
        bench(settings)
