"""What the server counts and measures, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Monitoring:
    """The metrics of one server.

    Attributes:
        requests: by route, method and status. seconds: of requests, by route.
        unfinished: requests in the queue or running. running: requests in a thread, whose answers are batched as rows.
        part_seconds: by part of a request: waiting, opening the medium, answering.
        tokens: written by the model. jobs: tracking jobs that ended, by state. frames: tracked by jobs.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        route = ["route", "method", "status"]
        self.requests = Counter("sa2va_requests", "Requests answered.", route, registry=registry)
        self.seconds = Histogram(
            "sa2va_request_seconds", "Time of requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.unfinished = Gauge("sa2va_queue", "Requests waiting or running.", registry=registry)
        self.running = Gauge("sa2va_rows", "Requests being answered.", registry=registry)
        self.part_seconds = Histogram(
            "sa2va_part_seconds", "Time by part.", ["part"], buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("sa2va_tokens", "Tokens written; its rate is tokens per second.", registry=registry)
        self.jobs = Counter("sa2va_jobs", "Tracking jobs that ended.", ["state"], registry=registry)
        self.frames = Counter("sa2va_frames", "Frames tracked by jobs.", registry=registry)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for when the metrics are read."""
        Gauge(name, help, registry=self.registry).set_function(value)

    def watch_devices(self) -> None:
        """Add the memory of the accelerator, where there is one."""
        if torch.cuda.is_available():
            self.watch("sa2va_device_bytes", "Memory of tensors on the device.", torch.cuda.memory_allocated)

    def waited(self, seconds: float) -> None:
        """A request has left the queue."""
        self.part_seconds.labels("waiting").observe(seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of a request."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.part_seconds.labels(name).observe(time.perf_counter() - started)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
