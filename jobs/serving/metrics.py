"""What Prometheus is told: requests, times, batches, the queue and the tints in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        own: Any = {"namespace": "tintray", "registry": self._registry}
        self._requests = Counter("requests", "Requests, by status code.", ["code"], **own)
        self._examples = Counter("examples", "Examples answered.", ["task", "version"], **own)
        self._seconds = Histogram("request_seconds", "Seconds of a request.", **own)
        self._gauges = {
            name: Gauge(name, about, ["version"], **own)
            for name, about in (
                ("queued_examples", "Examples that wait."),
                ("batch_examples", "Examples of a batch, as a mean."),
                ("tints_in_memory", "Tasks whose tints are in memory, in one replica."),
                ("tint_bytes", "What they take."),
                ("tint_hit_rate", "How often a tint was in memory when it was needed."),
            )
        }

    def request(self, code: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(str(code)).inc()
        self._seconds.observe(seconds)

    def answered(self, task: str, version: str) -> None:
        """An example was answered."""
        self._examples.labels(task, version).inc()

    def text(self, status: Mapping[str, Any]) -> bytes:
        """Everything in Prometheus' form, with what ``Versions.status`` says."""
        from prometheus_client import generate_latest

        for gauge in self._gauges.values():
            gauge.clear()
        for live in (status["stable"], status["candidate"]):
            if live is None:
                continue
            tints = live["tints"]
            asked = tints.get("hits", 0) + tints.get("misses", 0)
            figures = {
                "queued_examples": live["queued"],
                "batch_examples": live["examples"] / max(1, live["batches"]),
                "tints_in_memory": tints.get("tasks", 0),
                "tint_bytes": tints.get("bytes", 0),
                "tint_hit_rate": tints.get("hits", 0) / max(1, asked),
            }
            for name, value in figures.items():
                self._gauges[name].labels(live["version"]).set(value)
        return generate_latest(self._registry)
