"""``d2ed2q serve --check``: whether a node would run, and whether those it talks to are there."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from d2ed2q.errors import ConfigError
from d2ed2q.files import unwritable

if TYPE_CHECKING:
    from d2ed2q.serve.node import Node

__all__ = ["check_node"]

_TIMEOUT = 5.0


def check_node(node: Node) -> list[str]:
    """Checks what can be checked without serving: the model (done when the node was made), addresses, folders, peers.

    Returns:
        list[str]: what was found, a line each; a peer that does not answer is a warning, because it may be away.

    Raises:
        ConfigError: a certificate cannot be used, an address cannot be had, or a folder cannot be written to.
    """
    settings = node.settings
    node.http_context()  # those of the other parts were loaded when the node was made
    lines = [*node.greeting(), "settings, certificates and model are sound"]
    for place, door in (("http", settings.http), ("dicom", settings.dicom)):
        if door is not None:
            _bind(place, door.host, door.port)
            lines.append(f"{place}: {door.host}:{door.port} can be had")
    for watch in settings.watch:
        for folder in (watch.results or watch.folder, watch.failed or watch.folder):
            if (obstacle := unwritable(folder)) is not None:
                raise ConfigError(f"the folder {obstacle} is not there, or cannot be written to")
        lines.append(f"folder {watch.folder} can be written to")
    peers = {} if settings.dicom is None else settings.dicom.peers
    for name, peer in peers.items():
        address = urlsplit(peer.stow)
        default = 443 if address.scheme == "https" else 80
        host, port = (peer.host, peer.port) if peer.host else (address.hostname or "", address.port or default)
        lines.append(_reached(f"peer {name}", host, port))
    if settings.mqtt is not None:
        lines.append(_reached("MQTT broker", settings.mqtt.host, settings.mqtt.port))
    node.store.close()
    return lines


def _bind(place: str, host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(f"{place}: cannot listen at {host}:{port}: {error.strerror or error}") from error


def _reached(name: str, host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), _TIMEOUT):
            return f"{name} at {host}:{port} answers"
    except (OSError, ssl.SSLError) as error:
        return f"WARNING: {name} at {host}:{port} does not answer ({error}); results wait until it does"
