"""What a node counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = ["NodeMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


_DOUBT = tuple(step / 20 for step in range(1, 21))


class NodeMetrics:
    """Counters of one node.

    Args:
        model: name of the model.
        sha256: of the model.
        counts: jobs and deliveries by state, see :meth:`~d2ed2q.serve.store.JobStore.counts`.
        ready: whether images can be sent.
        sound: whether the engine answered when it was last asked.
    """

    def __init__(
        self,
        model: str,
        sha256: str,
        counts: Callable[[], Mapping[str, int]],
        ready: Callable[[], bool],
        sound: Callable[[], bool],
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("d2ed2q_requests", "HTTP requests", ["route", "status"], registry=registry)
        self.jobs = Counter("d2ed2q_jobs", "Images, by door and how they ended", ["door", "state"], registry=registry)
        self.denied = Counter("d2ed2q_denied", "Not let in, by door and reason", ["door", "reason"], registry=registry)
        self.repeated = Counter("d2ed2q_repeated", "Images that were there already", ["door"], registry=registry)
        self.deliveries = Counter("d2ed2q_deliveries", "Results sent, by peer", ["peer", "outcome"], registry=registry)
        self.seconds = Histogram("d2ed2q_segment_seconds", "Time in the model", buckets=_SECONDS, registry=registry)
        self.doubt = Histogram("d2ed2q_doubt", "Doubt of images", buckets=_DOUBT, registry=registry)
        info = Counter("d2ed2q_model", "The model that answers", ["name", "sha256"], registry=registry)
        info.labels(model, sha256).inc()
        self.registry.register(_Queue(counts))
        for name, about, asked in (
            ("d2ed2q_ready", "Whether images can be sent: what /v2/health/ready says", ready),
            ("d2ed2q_engine_sound", "Whether the engine answered when it was last asked", sound),
        ):
            Gauge(name, about, registry=registry).set_function(asked)

    def text(self) -> bytes:
        """All of them, in Prometheus' text form."""
        return generate_latest(self.registry)


class _Queue(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("d2ed2q_queue", "Jobs and deliveries in the queue, by state", labels=["state"])
        for state, count in self._counts().items():
            family.add_metric([state], count)
        yield family
