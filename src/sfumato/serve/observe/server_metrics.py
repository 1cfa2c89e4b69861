"""What Prometheus is told. No label holds what a caller wrote: their number would have no bound."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


class ServerMetrics:
    """One server's counters, in a registry of their own, so that several servers can live in one process of tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "sfumato_http_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self.jobs = Counter("sfumato_jobs", "Jobs by how they went on.", ("event",), registry=self.registry)
        self.waiting = Gauge("sfumato_jobs_waiting", "Jobs that wait.", registry=self.registry)
        self.units = Counter("sfumato_units", "Pictures asked of the worker.", ("outcome",), registry=self.registry)
        self.seconds = Histogram(
            "sfumato_unit_seconds",
            "Time from asking the worker for a picture to having it.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
            registry=self.registry,
        )
        self.workers = Counter("sfumato_worker_starts", "Worker processes started.", registry=self.registry)
        self.subscribers = Gauge("sfumato_event_streams", "Open event streams.", registry=self.registry)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
