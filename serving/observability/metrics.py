"""A finished request, and the Prometheus metrics of one API process.

Owns the metrics' names, labels and buckets. Does not know routes or who reads the metrics.

    metrics = Metrics()
    body, content_type = metrics.render()  # the response of GET /metrics
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

OTHER = "other"
"""Label of values without one of their own: unknown paths and methods, and models beyond the maximum."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BYTES = tuple(float(4**power) for power in range(4, 16))  # 256 bytes to 1 GiB


@dataclass(frozen=True)
class FinishedRequest:
    """What metrics, request log and usage ledger count: no body, prompt, path or key."""

    request_id: str
    method: str
    route: str
    """The route's template, such as `/v1/files/{file_id}`; `other` if no route matches."""
    status: int
    complete: bool
    """Whether the whole response was sent; False for a stream that broke off."""
    duration_s: float
    first_chunk_s: float | None
    """Seconds until the first chunk of a stream. None: the response was not a stream."""
    response_bytes: int
    team: str | None
    key_id: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    background: Literal[True] | None = None
    """Whether it waited for an engine that nothing else used: its duration is no measure of the service."""


class Metrics:
    """The metrics of one process, in their own registry. Thread-safe."""

    def __init__(self, *, max_models: int = 1000) -> None:
        """`max_models`: models with a label of their own; further ones share `other`."""
        self._max_models = max_models
        self._models: set[str] = set()
        self._statuses: set[str] = set()
        self.registry = CollectorRegistry()
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=self.registry)
        sizes = partial(Histogram, buckets=_BYTES, registry=self.registry)
        self.in_progress = gauge("kitae_requests_in_progress", "Requests being answered.")
        self._requests = counter("kitae_requests_total", "Requests answered.", ["route", "method", "status"])
        self._duration = seconds(
            "kitae_request_duration_seconds",
            "Time from a request's arrival to the end of its response.",
            ["route", "method"],
        )
        self._first_chunk = seconds(
            "kitae_time_to_first_token_seconds",
            "Time from a request's arrival to the first chunk of a streamed response.",
            ["route"],
        )
        self._size = sizes("kitae_response_size_bytes", "Size of response bodies.", ["route"])
        self._tokens = counter("kitae_tokens_total", "Prompt and completion tokens.", ["model", "kind", "team"])
        self._jobs = gauge("kitae_jobs", "Fine-tuning jobs by status.", ["status"])
        self._deliveries = counter("kitae_webhook_deliveries_total", "Attempts to deliver a webhook.", ["outcome"])
        self._answers = counter("kitae_stored_answers_total", "Answers to be stored, by outcome.", ["outcome"])
        self._unreadable = gauge("kitae_unreadable_records", "Records of the store that cannot be read.", ["kind"])

    def observe(self, done: FinishedRequest) -> None:
        """Count a finished request."""
        self._requests.labels(done.route, done.method, str(done.status)).inc()
        if not done.background:
            self._duration.labels(done.route, done.method).observe(done.duration_s)
        self._size.labels(done.route).observe(done.response_bytes)
        if done.first_chunk_s is not None:
            self._first_chunk.labels(done.route).observe(done.first_chunk_s)
        if done.model is not None:
            if len(self._models) < self._max_models:
                self._models.add(done.model)
            model = done.model if done.model in self._models else OTHER
            for kind, count in (("prompt", done.prompt_tokens), ("completion", done.completion_tokens)):
                if count is not None:
                    self._tokens.labels(model, kind, done.team or OTHER).inc(count)

    def set_jobs(self, counts: Mapping[str, int]) -> None:
        """Set the number of jobs of each status; a status without an entry becomes 0.

        Every replica reports the jobs of the whole store: aggregate replicas with `max`, not `sum`.
        """
        self._statuses |= set(counts)
        for status in self._statuses:
            self._jobs.labels(status).set(counts.get(status, 0))

    def set_unreadable(self, counts: Mapping[str, int]) -> None:
        """Set the number of unreadable records of each kind."""
        for kind, count in counts.items():
            self._unreadable.labels(kind).set(count)

    def webhook_delivery(self, outcome: str) -> None:
        """Count a delivery attempt; `outcome` is one of `ray_jobs.tenancy.webhooks.OUTCOMES`."""
        self._deliveries.labels(outcome).inc()

    def stored_answer(self, outcome: str) -> None:
        """Count an answer that was to be stored; `outcome` is one of `serving.stored.writer.OUTCOMES`."""
        self._answers.labels(outcome).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
