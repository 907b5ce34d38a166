"""What tests of the node share: waiting, ports, and a node whose HTTP door is on one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from d2ed2q.serve.node import Node


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


@contextlib.contextmanager
def served(node: Node) -> Iterator[int]:
    """A running node with its HTTP door on a real port."""
    import uvicorn

    port = free_port()
    with node.running():
        server = uvicorn.Server(uvicorn.Config(node.app(), port=port, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            wait(lambda: listens(port))
            yield port
        finally:
            server.should_exit = True
            thread.join(30)
