"""A bundle runs where only the runtime is installed: no PyTorch, no telemetry, no network."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ..without_pytorch import without_pytorch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
    import socket, sys, time

    def refused(*arguments, **options):
        raise AssertionError("the runtime opened a socket")

    socket.socket.connect = socket.socket.sendto = socket.getaddrinfo = refused
    start = time.perf_counter()
    from d2ed2q import Predictor, read_image
    print("import", time.perf_counter() - start)
    start = time.perf_counter()
    for engine in ("openvino", "onnxruntime"):
        predictor = Predictor(sys.argv[1], engine)
        prediction = predictor(read_image(__import__("pathlib").Path(sys.argv[2])))
        assert predictor.self_test().passed
        assert prediction.mask.shape == (96, 96)
    from d2ed2q.cli import main

    assert main(["predict", sys.argv[1], sys.argv[2], "--out", sys.argv[3]]) == 0
    assert main(["inspect", sys.argv[1]]) == 0
    assert main(["train", "--data", "d", "--out", "o"]) == 2
    assert main(["export", "run", "-o", "m.d2q"]) == 2
"""


def run_without_pytorch(python: str | Path, bundle: Path, image: Path, out: Path) -> str:
    script = without_pytorch(SCRIPT)
    command = [str(python), "-c", script, str(bundle), str(image), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert (out / f"{image.stem}_mask.png").is_file()
    assert "pip install 'd2ed2q[train]'" in done.stderr
    return done.stdout


def test_prediction_needs_no_pytorch(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    image = next((phantoms / "test" / "images").iterdir())
    run_without_pytorch(sys.executable, bundle, image, tmp_path / "masks")


@pytest.mark.timeout(600)
def test_a_clean_environment_with_the_runtime_alone(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    """What ``pip install d2ed2q[runtime]`` brings is enough, and PyTorch is not among it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{ROOT}[runtime]"], check=True)
    listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True).stdout
    installed = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"openvino", "onnxruntime", "d2ed2q"} <= installed
    assert not installed & {"torch", "monai", "matplotlib", "nncf", "scikit-image", "onnx"}
    image = next((phantoms / "test" / "images").iterdir())
    run_without_pytorch(python, bundle, image, tmp_path / "masks")
