"""The metrics that Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Hashable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of a service, with a registry of its own, so that several services may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        PlatformCollector(self.registry)
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "openm6_requests", "Answers", ("route", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "openm6_request_seconds",
            "From the first byte of a request to the last of its answer",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.at_work = Gauge("openm6_requests_at_work", "Requests not answered yet", registry=self.registry)
        self.waiting = Gauge(
            "openm6_queue", "Requests that wait for the model, not begun", registry=self.registry
        )
        self.batch_size = Histogram(
            "openm6_batch_size",
            "Requests that the model computed together",
            ("task",),
            buckets=SIZES,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "openm6_batch_seconds",
            "Time that a batch took",
            ("task",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def batch(self, key: Hashable, size: int, seconds: float) -> None:
        """Count a batch. The first part of a kind's key is the task."""
        task = str(key[0] if isinstance(key, tuple) else key)
        self.batch_size.labels(task).observe(size)
        self.batch_seconds.labels(task).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
