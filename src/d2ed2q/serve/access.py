"""Who may ask, and how often: bearer tokens that are known by their hashes alone, and a bound for every client."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

__all__ = ["RateLimit", "Tokens", "new_token"]

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
