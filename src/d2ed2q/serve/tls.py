"""TLS as a node uses it: version 1.2 or newer, and certificates of both sides where an authority is named."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from d2ed2q.errors import ConfigError
from d2ed2q.serve.settings import TlsSettings

__all__ = ["client_context", "server_context"]


def server_context(settings: TlsSettings, refused: Callable[[], None] | None = None) -> ssl.SSLContext:
    """For connections that come in.

    Args:
        settings: certificates.
        refused: is called when hands are not shaken with somebody, for servers that say nothing of it (asyncio's).

    Raises:
        ConfigError: a file is no certificate or key, or they do not belong together.
    """
    context = _loaded(ssl.Purpose.CLIENT_AUTH, settings)
    if refused is not None:
        context.sslobject_class = _noting(refused)
    return context


def _noting(refused: Callable[[], None]) -> type[ssl.SSLObject]:
    class Noting(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise  # there is more to come
            except ssl.SSLError:
                refused()
                raise

    return Noting


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """For connections that go out.

    Raises:
        ConfigError: as :func:`server_context`.
    """
    return _loaded(ssl.Purpose.SERVER_AUTH, settings)


def _loaded(purpose: ssl.Purpose, settings: TlsSettings) -> ssl.SSLContext:
    try:
        # With an authority, it alone is believed, and none of those that the system knows.
        authority = None if settings.authority is None else str(settings.authority)
        context = ssl.create_default_context(purpose, cafile=authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.certificate, settings.key)
        if authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"the certificate {settings.certificate} and its key {settings.key} cannot be used: {error}; both are PEM "
            f"files, the key without a password"
        ) from error
    return context
