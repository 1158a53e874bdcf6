"""Metrics for Prometheus: requests, times, tokens, and answers by how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from bitquilt.talk.events import End

if TYPE_CHECKING:
    from bitquilt.serve.scheduler import Scheduler

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._counter("requests", "Requests by path and status", "path", "status")
        self._seconds = Histogram(
            "bitquilt_first_token_seconds",
            "Seconds from a request to the first piece of its answer",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._prompt = self._counter("prompt_tokens", "Tokens of the prompts")
        self._said = self._counter(
            "completion_tokens", "Tokens of the answers, without those that were taken back"
        )
        self._discarded = self._counter("discarded_tokens", "Tokens of loops that were taken back")
        self._drafted = self._counter("drafted_tokens", "Tokens that a draft model had said ahead")
        self._answers = self._counter("answers", "Answers by how they ended", "finish_reason")

    def watch(self, scheduler: Scheduler) -> None:
        """Report how many requests the scheduler has now."""
        running = self._gauge("requests_running", "Requests whose answers are being made")
        running.set_function(lambda: scheduler.running)
        waiting = self._gauge("requests_waiting", "Requests that wait for their turn")
        waiting.set_function(lambda: scheduler.waiting)

    def requested(self, path: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(path, str(status)).inc()

    def began(self, seconds: float) -> None:
        """Take note that an answer began so many seconds after its request."""
        self._seconds.observe(seconds)

    def ended(self, end: End) -> None:
        """Count an answer that has ended."""
        self._prompt.inc(end.prompt_tokens)
        self._said.inc(end.tokens)
        self._discarded.inc(end.discarded_tokens)
        self._drafted.inc(end.drafted_tokens)
        self._answers.labels(end.finish_reason).inc()

    def text(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"bitquilt_{name}", what, labels, registry=self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"bitquilt_{name}", what, registry=self._registry)
