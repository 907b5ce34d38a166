"""Results on their way to peers, again and again until they are taken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from itertools import groupby

from d2ed2q.errors import StorageError
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.outbox import LONGEST_WAIT, Delivery
from d2ed2q.serve.peers import PeerError, send_by_c_store, send_by_stow, stow_context
from d2ed2q.serve.settings import PeerSettings
from d2ed2q.serve.store import JobStore
from d2ed2q.serve.worker import whereabouts

__all__ = ["Deliverer"]

_LONGEST_STOP = 60.0
_FIRST_WAIT = 2.0
_LOG = logging.getLogger("d2ed2q.serve")


class Deliverer:
    """Sends what is due, in a thread of its own.

    Args:
        store: the queue.
        peers: by name.
        own_title: application entity title of the node.
        render: makes a result of a job, by its number and the result's name.
        audit: is told what was sent.
        metrics: counts.
        seconds: how long a peer that does not answer is tried, while the node runs.

    Raises:
        ConfigError: certificates that cannot be used.
    """

    def __init__(
        self,
        store: JobStore,
        peers: Mapping[str, PeerSettings],
        own_title: str,
        render: Callable[[int, str], bytes],
        audit: AuditLog,
        metrics: NodeMetrics,
        seconds: float,
    ) -> None:
        self.store, self.peers, self.own_title, self.render = store, peers, own_title, render
        self.audit, self.metrics, self.seconds = audit, metrics, seconds
        self._contexts = {name: stow_context(peer) for name, peer in peers.items()}
        self._after: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="d2ed2q-delivery", daemon=True)

    def start(self) -> None:
        """Begins, with what was left undelivered."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether results are sent."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends after what is being sent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LONGEST_STOP)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                busy = self.deliver()
            except Exception as error:  # whatever happens to one round, there is another
                _LOG.error("a round of deliveries failed: %s", whereabouts(error))
                busy = False
            self._stop.wait(0.02 if busy else 0.5)

    def deliver(self) -> bool:
        """Sends everything that is due, once.

        Returns:
            bool: whether anything was, and could be noted down; where not, it would only be sent again at once.
        """
        failed = False
        due = [delivery for delivery in self.store.outbox.due() if delivery.peer in self.peers]
        # It goes on after the image where the peer went away the last time, which must not be the first for ever.
        due.sort(key=lambda d: (d.peer, d.job <= self._after.get(d.peer, 0), d.job))
        by_peer = groupby(due, key=lambda d: d.peer)
        for peer, deliveries in by_peer:
            try:
                self._send_all(peer, list(deliveries))
            except Exception as error:  # one peer must not keep results from the others
                _LOG.error("sending to %s failed: %s", peer, whereabouts(error))
                failed = True
        return bool(due) and not failed

    def _send_all(self, peer: str, deliveries: list[Delivery]) -> None:
        """Sends one image's results after the other's, so that few are in the memory."""
        away: str | None = None
        for _, group in groupby(deliveries, key=lambda d: d.job):
            of_job = list(group)
            if self._stop.is_set():
                return
            if away is None:
                away = self._send(peer, of_job)
                if away is not None:
                    self._after[peer] = of_job[0].job
                continue
            for delivery in of_job:  # nobody waits for a peer that is away once more for every image
                self._retry(delivery, away)

    def _send(self, name: str, deliveries: list[Delivery]) -> str | None:
        """Sends one image's results; says why the peer is away, where it is."""
        files: dict[str, bytes] = {}
        waiting: dict[str, Delivery] = {}
        for delivery in deliveries:
            try:
                files[delivery.file], waiting[delivery.file] = self.render(delivery.job, delivery.file), delivery
            except StorageError as error:  # it may be readable again
                self._retry(delivery, whereabouts(error))
            except Exception as error:  # it will be no better the next time; its message may quote the image
                self._give_up(delivery, f"it cannot be made: {whereabouts(error)}")
        if not files:
            return None
        peer, away = self.peers[name], None
        try:
            if peer.stow:
                outcome = send_by_stow(peer, files, self._contexts[name])
            else:
                outcome = send_by_c_store(peer, self.own_title, files)
        except PeerError as error:
            away = str(error)
            outcome = {**dict.fromkeys(files, away), **error.answered}
        for file, problem in outcome.items():
            if problem is None:
                self.store.outbox.delivered(waiting[file])
                self.metrics.deliveries.labels(name, "done").inc()
                self.audit.note("delivered", job=waiting[file].job, peer=name, file=file)
            else:
                self._retry(waiting[file], problem)
        return away

    def _retry(self, delivery: Delivery, error: str) -> None:
        spent = delivery.spent
        if delivery.attempts:
            # What was planned, and a bit where it took longer: clocks are set, and nodes are switched off.
            spent += _wait(delivery.attempts - 1) + min(max(self.store.clock() - delivery.due, 0), LONGEST_WAIT)
            if spent > self.seconds:
                self._give_up(delivery, error)
                return
        self.store.outbox.retry(delivery, _wait(delivery.attempts), error, spent)
        self.metrics.deliveries.labels(delivery.peer, "retried").inc()

    def _give_up(self, delivery: Delivery, error: str) -> None:
        self.store.outbox.give_up(delivery, error)
        self.metrics.deliveries.labels(delivery.peer, "failed").inc()
        self.audit.note("undelivered", job=delivery.job, peer=delivery.peer, file=delivery.file)
        _LOG.error("job %d: %s was not taken by %s: %s", delivery.job, delivery.file, delivery.peer, error)


def _wait(attempts: int) -> float:
    """Seconds from an attempt to the next, by how many there were before it."""
    return min(_FIRST_WAIT * 2.0 ** min(attempts, 20), LONGEST_WAIT)
