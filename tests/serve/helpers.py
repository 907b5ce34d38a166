"""What tests of the node share: waiting, ports, other programs, and a node whose HTTP door is on a port."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from d2ed2q.serve.node import Node


def client_of(node: Node, **options: Any) -> TestClient:
    """A client on this machine: what else it is called, a node that asks for no token does not listen to."""
    return TestClient(node.app(), base_url="http://localhost", **options)


def wait(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def audited(node: Node) -> list[dict[str, Any]]:
    """The entries of a node's audit log."""
    return [json.loads(line) for line in node.audit.path.read_text().splitlines()]


@contextlib.contextmanager
def served(node: Node) -> Iterator[int]:
    """A running node with its HTTP door on a real port."""
    import uvicorn

    port = free_port()
    with node.running():
        config = uvicorn.Config(node.app(), port=port, log_level="warning", lifespan="off")
        config.load()
        config.ssl = node.http_context()
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            wait(lambda: listens(port))
            yield port
        finally:
            server.should_exit = True
            thread.join(30)


def needs(program: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed here")
    return path


@contextlib.contextmanager
def program(*command: str, port: int | None = None, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True
    )
    try:
        if port is not None:
            wait(lambda: listens(port) or process.poll() is not None)
            assert process.poll() is None, process.communicate()[1]
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        process.kill()
        process.communicate()
