"""Prometheus metrics. Every series exists from the start with 0, so that rates have a beginning.

Where in the flow: `endpoint` and `engine` count; GET /metrics renders. No label has a value that a
client chose.

A balance holds at rest: requests = answered + refused + failed + disconnected.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from nomicbert.serve.http.problems import STATUS, Reason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# How a request can end.
OUTCOMES = ("answered", "refused", "failed", "disconnected")
# Statuses of some dialects, and 499 for a client that left.
MORE_STATUSES = (422, 424, 499)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All metrics of one server."""

    def __init__(self, routes: Iterable[tuple[str, str]], models: Sequence[str]) -> None:
        """Create every series.

        Args:
            routes: (dialect, route) pairs.
            models: names of the models.
        """
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"nomicbert_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
        ) -> Histogram:
            return Histogram(f"nomicbert_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter(
            "requests", "Requests by the status of their answer", ("dialect", "route", "status")
        )
        self._request_seconds = histogram(
            "request_seconds", "Time from the head of a request to its answer", SECONDS, ("route",)
        )
        self._outcomes = counter("outcomes", "Requests by how they ended", ("outcome",))
        self._refused = counter("refused", "Requests that were refused", ("reason",))
        self.queue_seconds = histogram(
            "queue_seconds", "Wait of a request until its first text is computed", SECONDS
        )
        self.tokenise_seconds = histogram("tokenise_seconds", "Time to tokenise a request", SECONDS)
        self.compute_seconds = histogram(
            "compute_seconds", "Time from a request's first text in a batch to its last", SECONDS
        )
        self.encode_seconds = histogram("encode_seconds", "Time to write an answer", SECONDS)
        self._texts = counter("texts", "Texts embedded", ("model",))
        self._tokens = counter("tokens", "Tokens of these texts", ("model",))
        self._truncated = counter("truncated_texts", "Texts that were cut", ("model",))
        self.doubled_prompts = counter(
            "doubled_prompts", "Texts that began with a prompt and got one"
        )
        self.input_tokens = histogram("input_tokens", "Tokens per text", TOKENS)
        self.batch_tokens = histogram("batch_tokens", "Tokens per batch", TOKENS)
        self.batch_texts = histogram("batch_texts", "Texts per batch", TEXTS)
        self.batch_seconds = histogram("batch_seconds", "Time to compute a batch", SECONDS)
        self.failed_batches = counter("failed_batches", "Batches with a text that failed")
        self.internal_errors = counter("internal_errors", "Requests that met a bug of the server")
        self._add_gauges(registry)
        self._info = Gauge(
            "nomicbert_model_info",
            "1 for each model",
            ("model", "dtype", "backend", "fingerprint"),
            registry=registry,
        )
        self._by_status: dict[tuple[str, str, int], Counter] = {}
        self._by_route: dict[str, Histogram] = {}
        self._by_outcome = {outcome: self._outcomes.labels(outcome) for outcome in OUTCOMES}
        for reason in Reason:
            self._refused.labels(reason.value)
        statuses = sorted({200, *STATUS.values(), *MORE_STATUSES})
        for dialect, route in routes:
            self._by_route[route] = self._request_seconds.labels(route)
            for status in statuses:
                self._requests.labels(dialect, route, str(status))
        self._by_model: dict[str, tuple[Counter, Counter]] = {}
        for model in models:
            self._by_model[model] = self._texts.labels(model), self._tokens.labels(model)
            self._truncated.labels(model)

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"nomicbert_{name}", text, registry=registry)

        self.waiting_texts = gauge("waiting_texts", "Texts that wait for a batch")
        self.waiting_tokens = gauge("waiting_tokens", "Tokens that wait for a batch")
        self.queue_ahead = gauge(
            "queue_seconds_ahead", "Waiting tokens divided by the rate: for autoscaling"
        )
        self.in_flight = gauge("in_flight_requests", "Requests that have no answer yet")
        self.cache_bytes = gauge("cache_bytes", "Memory of the cache of vectors")
        self.cache_hits = gauge("cache_hits_total", "Texts found in the cache")
        self.cache_misses = gauge("cache_misses_total", "Texts not found in the cache")
        self.worker_restarts = gauge(
            "worker_restarts_total", "Worker processes that were started again"
        )
        self.ready = gauge("ready", "1 while the server is ready")
        self.draining = gauge("draining", "1 after SIGTERM")

    def read_from(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Read a gauge whenever metrics are rendered."""
        gauge.set_function(read)

    def request(self, dialect: str, route: str, status: int, seconds: float, outcome: str) -> None:
        """Count a request that has ended."""
        # children are kept: `labels` takes longer than to count
        key = (dialect, route, status)
        counter = self._by_status.get(key)
        if counter is None:
            counter = self._by_status[key] = self._requests.labels(dialect, route, str(status))
        counter.inc()
        self._by_route[route].observe(seconds)
        self._by_outcome[outcome].inc()

    def refused(self, reason: Reason) -> None:
        """Count a refusal."""
        self._refused.labels(reason.value).inc()

    def embedded(self, model: str, lengths: Sequence[int], truncated: int) -> None:
        """Count the texts of a request."""
        texts, tokens = self._by_model[model]
        texts.inc(len(lengths))
        tokens.inc(sum(lengths))
        if truncated:
            self._truncated.labels(model).inc(truncated)
        for length in lengths:
            self.input_tokens.observe(length)

    def model(self, name: str, dtype: str, backend: str, fingerprint: str) -> None:
        """State a loaded model."""
        self._info.labels(name, dtype, backend, fingerprint).set(1)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
