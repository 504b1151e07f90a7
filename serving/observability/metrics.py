"""Prometheus metrics of one API process.

Owns the metrics' names, labels and buckets. Does not know routes or who reads the metrics.

    metrics = Metrics()
    body, content_type = metrics.render()  # the response of GET /metrics
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.observability.finished_request import OTHER, FinishedRequest

_MAX_MODELS = 1000
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_BYTES = tuple(float(4**power) for power in range(4, 16))  # 256 bytes to 1 GiB


class Metrics:
    """The metrics of one process, in their own registry. Thread-safe."""

    def __init__(self, *, max_models: int = _MAX_MODELS) -> None:
        """`max_models`: models with a label of their own; further ones share `other`."""
        self._max_models = max_models
        self.registry = registry = CollectorRegistry()
        self._models: set[str] = set()
        self._statuses: set[str] = set()
        self.in_progress = Gauge("kitae_requests_in_progress", "Requests being answered.", registry=registry)
        self._requests = Counter(
            "kitae_requests_total", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._duration = Histogram(
            "kitae_request_duration_seconds",
            "Time from a request's arrival to the end of its response.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_chunk = Histogram(
            "kitae_time_to_first_token_seconds",
            "Time from a request's arrival to the first chunk of a streamed response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._size = Histogram(
            "kitae_response_size_bytes", "Size of response bodies.", ["route"], buckets=_BYTES, registry=registry
        )
        self._tokens = Counter(
            "kitae_tokens_total", "Prompt and completion tokens.", ["model", "kind", "team"], registry=registry
        )
        self._jobs = Gauge("kitae_jobs", "Fine-tuning jobs by status.", ["status"], registry=registry)
        self._deliveries = Counter(
            "kitae_webhook_deliveries_total", "Attempts to deliver a webhook.", ["outcome"], registry=registry
        )

    def observe(self, done: FinishedRequest) -> None:
        """Count a finished request."""
        self._requests.labels(done.route, done.method, str(done.status)).inc()
        self._duration.labels(done.route, done.method).observe(done.duration_s)
        self._size.labels(done.route).observe(done.response_bytes)
        if done.first_chunk_s is not None:
            self._first_chunk.labels(done.route).observe(done.first_chunk_s)
        if done.model is not None:
            for kind, count in (("prompt", done.prompt_tokens), ("completion", done.completion_tokens)):
                if count is not None:
                    self._tokens.labels(self._label_of(done.model), kind, done.team or OTHER).inc(count)

    def set_jobs(self, counts: Mapping[str, int]) -> None:
        """Set the number of jobs of each status; a status without an entry becomes 0.

        Every replica reports the jobs of the whole store: aggregate replicas with `max`, not `sum`.
        """
        self._statuses |= set(counts)
        for status in self._statuses:
            self._jobs.labels(status).set(counts.get(status, 0))

    def webhook_delivery(self, outcome: str) -> None:
        """Count a delivery attempt; `outcome` is one of `ray_jobs.tenancy.webhooks.OUTCOMES`."""
        self._deliveries.labels(outcome).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _label_of(self, model: str) -> str:
        if model not in self._models and len(self._models) >= self._max_models:
            return OTHER
        self._models.add(model)
        return model
