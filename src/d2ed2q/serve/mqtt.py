"""What happens on a node, told to an MQTT 5 broker: whether it lives, and that results are there; never a pixel.

``<topic>/status`` is retained: ``online``, ``degraded`` with the reason, or ``offline`` (the last will).
``<topic>/results`` has one message a job, at least once (QoS 1): its summary and where its results are. A message that
comes twice has the same ``key``. Nothing that comes from a patient's file is in them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import aiomqtt

from d2ed2q.serve.database import MQTT_PEER
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.settings import MqttSettings
from d2ed2q.serve.store import Job, JobStore
from d2ed2q.serve.tls import client_context
from d2ed2q.serve.worker import Trouble, whereabouts

__all__ = ["Teller", "message_of"]

_AGAIN = 2.0  # seconds until a broker that is away is tried again
_LOG = logging.getLogger("d2ed2q.serve")


def message_of(job: Job, node: str) -> dict[str, Any]:
    """What is told of a job: nothing but this."""
    summary = job.summary or {}
    return {
        "node": node,
        "job": job.id,
        "key": job.key,
        "door": job.door,
        "state": job.state,
        "created": job.created,
        **{name: summary[name] for name in ("model", "model_sha256", "pixels", "objects", "doubt") if name in summary},
        "results": f"/jobs/{job.id}",
        "note": "research use only; not a medical device",
    }


class Teller:
    """Tells the broker, in a thread of its own; what it could not be told waits in the queue's deliveries.

    Args:
        settings: of the broker.
        store: the queue.
        metrics: counts.
        node: name of the node.
        trouble: why images had better not be sent now; None where the node is well.

    Raises:
        ConfigError: certificates that cannot be used.
    """

    def __init__(
        self,
        settings: MqttSettings,
        store: JobStore,
        metrics: NodeMetrics,
        node: str,
        trouble: Callable[[], Trouble | None],
    ) -> None:
        self.settings, self.store, self.metrics, self.node = settings, store, metrics, node
        self.trouble = trouble
        # Two clients of one identifier push each other off the broker; the name alone may be that of another node.
        own = os.fsencode(f"{socket.gethostname()} {store.folder.resolve()}")
        self.identifier = f"d2ed2q-{node}-{hashlib.sha256(own).hexdigest()[:8]}"
        self._tls = None if settings.tls is None else client_context(settings.tls)
        self._stopping = threading.Event()
        self.connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="d2ed2q-mqtt", daemon=True)

    def start(self) -> None:
        """Begins to tell."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs, be the broker there or not."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Says that the node goes, and ends."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        asyncio.run(self._stay_connected())

    async def _stay_connected(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._connected()
            except (aiomqtt.MqttError, OSError) as error:
                _LOG.warning("the broker %s does not answer: %s", self.settings.host, error)
                self.metrics.deliveries.labels("mqtt", "retried").inc()
            except Exception as error:  # the broker is not what the node is for
                _LOG.error("telling the broker failed in a way that nobody thought of: %s", whereabouts(error))
            self.connected.clear()
            await self._sleep(_AGAIN)

    async def _connected(self) -> None:
        topic = self.settings.topic
        will = aiomqtt.Will(f"{topic}/status", b"offline", qos=1, retain=True)
        password = None
        if self.settings.password_file is not None:
            password = self.settings.password_file.read_text(encoding="utf-8").strip()
        client = aiomqtt.Client(
            self.settings.host, self.settings.port, username=self.settings.user or None, password=password,
            identifier=self.identifier, protocol=aiomqtt.ProtocolVersion.V5, will=will, tls_context=self._tls,
            clean_start=True, timeout=10,
        )  # fmt: skip
        async with client:
            said, quiet = "", 0.0
            while not self._stopping.is_set():
                status = self._status()
                # Again now and then, to ask whether the broker is there: a lost connection says so only when used.
                if status != said or quiet > 5:
                    await client.publish(f"{topic}/status", status.encode(), qos=1, retain=True)
                    said, quiet = status, 0.0
                    self.connected.set()
                told = await self._tell(client)
                quiet = 0.0 if told else quiet + 0.2
                await self._sleep(0.2)
            await client.publish(f"{topic}/status", b"offline", qos=1, retain=True)

    def _status(self) -> str:
        trouble = self.trouble()
        return "online" if trouble is None else f"degraded {trouble}"

    async def _tell(self, client: aiomqtt.Client) -> bool:
        due = [delivery for delivery in self.store.outbox.due() if delivery.peer == MQTT_PEER]
        for delivery in due:
            try:
                job = self.store.get(delivery.job)
            except KeyError:  # it is forgotten since
                continue
            text = json.dumps(message_of(job, self.node))
            await client.publish(f"{self.settings.topic}/results", text.encode(), qos=1)  # until it is acknowledged
            self.store.outbox.delivered(delivery)
            self.metrics.deliveries.labels("mqtt", "done").inc()
        return bool(due)

    async def _sleep(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.1))):
            if self._stopping.is_set():
                return
            await asyncio.sleep(0.1)
