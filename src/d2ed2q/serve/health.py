"""``d2ed2q serve --health``: whether the node that runs with these settings can be sent images."""

from __future__ import annotations

import http.client
import ssl

from d2ed2q.files import is_held
from d2ed2q.serve.settings import HttpSettings, NodeSettings
from d2ed2q.serve.tls import client_context

__all__ = ["LOCK", "ailment"]

LOCK = ".node"
"""File in the state's folder that a running node holds."""

_TIMEOUT = 5.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # who listens everywhere is asked at this machine


def ailment(settings: NodeSettings) -> str | None:
    """Asks a running node how it is.

    One without an HTTP door cannot be asked, and ends by itself where it is not well: there it counts that it runs.

    Args:
        settings: that it was started with.

    Returns:
        str | None: why it cannot be sent images; None where it can.

    Raises:
        ConfigError: certificates that cannot be used.
    """
    if settings.http is None:
        return None if is_held(settings.state / LOCK) else f"no node runs with the state in {settings.state}"
    connection = _connection(settings.http)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        hint = ""
        if settings.http.tls is not None and settings.http.tls.authority is not None:
            hint = f"; it asks for certificates of {settings.http.tls.authority}, and its own is shown here"
        return f"the HTTP door at {connection.host}:{connection.port} does not answer: {error}{hint}"
    finally:
        connection.close()
    return None if status == 200 else f"the node takes no images at the moment (HTTP {status})"


def _connection(door: HttpSettings) -> http.client.HTTPConnection:
    host = _ANY.get(door.host, door.host)
    if door.tls is None:
        return http.client.HTTPConnection(host, door.port, timeout=_TIMEOUT)
    context = client_context(door.tls)  # with the node's certificate, for doors that ask for one
    context.check_hostname = False  # which names other machines' name of it
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, door.port, timeout=_TIMEOUT, context=context)
