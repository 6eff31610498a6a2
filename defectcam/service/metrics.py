"""The service's figures for Prometheus.

Owns their names and labels. Each application has a registry of its own, so that several live in one
process; labels take values from closed sets, so that no request can make them grow.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one application.

    Parameters
    ----------
    requests_in_progress, queue_length : callables that return a number
        Asked when the figures are read.
    """

    def __init__(
        self, requests_in_progress: Callable[[], float], queue_length: Callable[[], float]
    ) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"defectcam_{name}", text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(
                f"defectcam_{name}", text, labels, registry=self.registry, buckets=buckets
            )

        self.requests = counter("requests", "Requests by answer", "model", "status")
        self.seconds = histogram("request_seconds", "From arrival to answer", "model")
        self.batch_images = histogram("batch_images", "Images per batch", "model", buckets=_SIZES)
        self.batch_seconds = histogram("batch_seconds", "Work on one batch", "model")
        self.images = counter("images", "Answered images", "model", "is_defect")
        self.unfamiliar = counter("unfamiliar_images", "Unlike all training images", "model")
        self.reloads = counter("model_reloads", "New versions of a file", "model", "result")
        for name, text, ask in (
            ("requests_in_progress", "Requests between arrival and answer", requests_in_progress),
            ("queue_length", "Images that wait for the network", queue_length),
        ):
            Gauge(f"defectcam_{name}", text, registry=self.registry).set_function(ask)

    def text(self) -> bytes:
        """Write all figures in Prometheus' text format."""
        return generate_latest(self.registry)
