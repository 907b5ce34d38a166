"""Who may ask, and how often: bearer tokens that are known by their hashes alone, pages, a bound for every client."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

__all__ = ["LOCAL", "RateLimit", "SameOrigin", "Tokens", "new_token"]

LOCAL = ("127.0.0.1", "localhost", "::1")  # what this machine is called by itself
_CLIENTS = 10_000  # remembered at most; an attacker with many addresses must not fill the memory


def new_token() -> tuple[str, str]:
    """A new bearer token, and its SHA-256 for the node's settings."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """Finds out whose a token is.

    Args:
        hashes: SHA-256 of every token, in hexadecimal, by the name of who has it; without any, nobody is asked.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def owner(self, authorization: str | None) -> str | None:
        """Who sends this.

        Args:
            authorization: of the request's header.

        Returns:
            str | None: the name; ``anybody`` where no token is needed, None where a token is missing or unknown.
        """
        if not self._hashes:
            return "anybody"
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for name, known in self._hashes.items():  # all of them, in the same time whatever the token is
            if hmac.compare_digest(digest, known):
                found = name
        return found if scheme.lower() == "bearer" else None


class SameOrigin:
    """Keeps web pages of others from using a browser to ask a node that asks nobody who he is.

    Such a page may name this machine by a name of its own (DNS rebinding), or send a form without reading the answer.

    Args:
        local: whether only this machine may ask, so that the node has no names but this machine's.
        names: further names of the node, a proxy's for example.
    """

    def __init__(self, local: bool, names: Iterable[str] = ()) -> None:
        self._local = local
        self._names = {name.lower() for name in names}

    def refuses(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Whether a request is refused; a program that says neither ``Host`` nor ``Origin`` is not.

        Args:
            headers: of the request.

        Returns:
            tuple: status and message; None lets the request in.
        """
        host, origin = headers.get("host"), headers.get("origin")
        if self._local and host is not None and not self._own(_name(host)):
            return 421, "the node is asked by another name than this machine's; ask localhost, or set http.names"
        if origin is not None and origin.partition("://")[2] != host and _name(origin) not in self._names:
            return 403, "the request comes from a page of another site; set http.names if that is a name of this node"
        return None

    def _own(self, name: str) -> bool:
        return name in LOCAL or name in self._names


def _name(address: str) -> str:
    """The name in ``scheme://name:port`` or ``name:port``; empty where there is none."""
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


class RateLimit:
    """A bucket of tokens for every client, refilled evenly.

    Args:
        per_minute: requests of one client.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._rate, self._clock = float(per_minute), per_minute / 60, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, client: str) -> float:
        """Takes one from a client's bucket.

        Returns:
            float: 0 if there was one; else seconds until there is.
        """
        with self._lock:
            now = self._clock()
            left, then = self._buckets.pop(client, (self._most, now))
            left = min(self._most, left + (now - then) * self._rate)
            wait = 0.0 if left >= 1 else (1 - left) / self._rate
            self._buckets[client] = (left - 1 if left >= 1 else left, now)
            while len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
            return wait
