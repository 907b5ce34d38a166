"""A node on a small model, and images to send to it."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from d2ed2q.data import make_phantom
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings, NodeSettings

from .helpers import client_of, needs


@pytest.fixture
def make_node(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes a node with an HTTP door; it is closed at the end."""
    made: list[Node] = []

    def make(**changes: Any) -> Node:
        # A model of three epochs doubts everything; what it refuses is asked where that is tested.
        own: dict[str, Any] = {"state": tmp_path / "state", "http": HttpSettings(), "threads": 1, "refuse": 1.0}
        values = own | changes
        node = Node(bundle, NodeSettings(**values))
        made.append(node)
        return node

    yield make
    for node in made:
        node.store.close()


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """A made-up retina, uint8 ``96×80×3``."""
    return np.ascontiguousarray(make_phantom(5, (96, 96)).image[:, :80])


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo(picture: np.ndarray) -> bytes:
    """The same as a PNG file."""
    return png(picture)


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Iterator[Node]:
    with make_node().running() as node:
        yield node


@pytest.fixture
def client(node: Node) -> TestClient:
    return client_of(node)


@pytest.fixture
def make_certificate(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a certificate of this machine that is its own authority; its key lies beside it, as ``.key``."""

    def make(name: str) -> Path:
        command = [needs("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                   f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                   "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]  # fmt: skip
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return tmp_path / f"{name}.pem"

    return make


@pytest.fixture
def certificate(make_certificate: Callable[[str], Path]) -> Path:
    return make_certificate("own")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of it for a node and a camera."""
    openssl = needs("openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
            "-days", "2", "-subj", f"/CN={authority}")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, authority in (("node", "ca"), ("camera", "ca"), ("stranger", "other")):
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder
