"""What the server counts, for Prometheus; each application has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# What the watch has noticed or missed is the owner's to know (`sdb token alerts`): anyone may read the metrics.
OWNERS = {"alerts", "alerts_waiting", "alerts_dropped", "images_not_observed", "detector_errors"}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one application.

    Args:
        waiting: the number of images in the queue, asked for whenever the metrics are read.
        watch: more numbers by name, asked for in the same way.
    """

    def __init__(self, waiting: Callable[[], int], watch: Callable[[], Mapping[str, float]] | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "sdb_requests", "Requests, by route and HTTP status.", ["route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "sdb_request_seconds", "Time to answer.", ["route"], buckets=LATENCY, registry=self.registry
        )
        self.refused = Counter("sdb_refused", "Requests refused, by reason.", ["reason"], registry=self.registry)
        self.images = Counter("sdb_images", "Images answered.", registry=self.registry)
        self.batches = Histogram(
            "sdb_batch_images", "Images in one forward.", buckets=SIZES, registry=self.registry
        )
        Gauge("sdb_queue_images", "Images that wait.", registry=self.registry).set_function(waiting)
        if watch is not None:
            self.registry.register(_Watched(watch))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Watched:
    """Hands on what the watch counts and anyone may know, as gauges named sdb_watch_*."""

    def __init__(self, read: Callable[[], Mapping[str, float]]) -> None:
        self.read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self.read().items():
            if name not in OWNERS:
                yield GaugeMetricFamily(f"sdb_watch_{name}", "See docs/aisvs.md.", value=value)
