"""A node as a process of its own: without PyTorch, and talking to nobody that its settings do not name."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from ..without_pytorch import without_pytorch
from .helpers import free_port, listens, wait

SCRIPT = """
    import socket, sys
    looked_up, connected = socket.getaddrinfo, socket.socket.connect

    def look_up(host, *arguments, **options):
        if host not in ("127.0.0.1", "localhost"):
            print("ESCAPED", host, file=sys.stderr, flush=True)
            raise OSError("no network here")
        return looked_up(host, *arguments, **options)

    def connect(self, address):
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            print("ESCAPED", address, file=sys.stderr, flush=True)
            raise OSError("no network here")
        return connected(self, address)

    socket.getaddrinfo, socket.socket.connect = look_up, connect
    from d2ed2q.cli import main

    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_it_serves_without_pytorch_and_without_the_internet(
    engine: str, bundle: Path, photo: bytes, tmp_path: Path
) -> None:
    port, dicom = free_port(), free_port()
    config = tmp_path / "node.toml"
    config.write_text(
        f'state = "{tmp_path / "state"}"\nengine = "{engine}"\nrefuse = 1.0\nthreads = 1\n'
        f"[http]\nport = {port}\n[dicom]\nport = {dicom}\n"
    )
    script = without_pytorch(SCRIPT)
    command = [sys.executable, "-c", script, "serve", str(bundle), "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: (listens(port) and listens(dicom)) or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]
        answer = httpx2.post(f"http://127.0.0.1:{port}/segment", content=photo, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["note"] == "research use only; not a medical device"
        assert httpx2.get(f"http://127.0.0.1:{port}/v2/health/ready").json() == {"ready": True}
    finally:
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "ESCAPED" not in errors
    assert "research use only" in out
