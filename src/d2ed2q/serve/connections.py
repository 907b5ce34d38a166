"""Connections at the HTTP door: how many there may be, and how long one may say, or take, nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["MOST_CONNECTIONS", "PromptProtocol"]

MOST_CONNECTIONS = 256
"""Requests that come while as many connections are open, their own included, are answered with 503."""

_SECONDS = 30.0  # between two looks at a connection; a body that comes slowly has a time of its own


class PromptProtocol(H11Protocol):
    """HTTP/1.1, where a connection is closed that begins no request, or takes nothing of its answer.

    uvicorn waits for both for ever, and such connections count: a few hundred of them would keep everybody out.
    """

    _timer: asyncio.TimerHandle | None = None
    _last: tuple[Any, int] = (None, 0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to look at it."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends that."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Closes it where nothing has happened since the last look, and that is not because the node is at work."""
        state = (self.cycle, self.transport.get_write_buffer_size())
        at_work = self.cycle is not None and not self.cycle.response_started
        if state == self._last and not at_work:
            self.transport.abort()  # it would wait for who takes nothing otherwise
            return
        self._last = state
        self._timer = self.loop.call_later(_SECONDS, self._look)
