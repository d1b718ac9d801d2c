"""Metrics: all series from the start, and counts."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from nomicbert.serve.http.problems import STATUS, Reason
from nomicbert.serve.metrics import OUTCOMES, Metrics

ROUTES = [("openai", "/v1/embeddings"), ("tei", "/embed")]
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(metrics: Metrics) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name.startswith("nomicbert_") and not sample.name.endswith("_created")
    }


def changes(metrics: Metrics, before: Series) -> dict[str, float]:
    """What has changed since, without buckets: "name value value" -> difference."""
    return {
        " ".join([name, *(value for _, value in labels)]): value - before[name, labels]
        for (name, labels), value in series(metrics).items()
        if value != before[name, labels] and not name.endswith("_bucket")
    }


def test_every_series_is_there_from_the_start() -> None:
    found = series(Metrics(ROUTES, ["a", "b"]))
    assert not any(found.values())

    def has(name: str, **labels: str) -> bool:
        return (f"nomicbert_{name}", tuple(sorted(labels.items()))) in found

    for dialect, route in ROUTES:
        assert has("request_seconds_count", route=route)
        for status in {200, 422, 424, *STATUS.values()}:
            assert has("requests_total", dialect=dialect, route=route, status=str(status))
    assert all(has("outcomes_total", outcome=outcome) for outcome in OUTCOMES)
    assert all(has("refused_total", reason=reason.value) for reason in Reason)
    for model in "ab":
        assert has("texts_total", model=model)
        assert has("tokens_total", model=model)
        assert has("truncated_texts_total", model=model)
    plain = [
        "doubled_prompts_total", "failed_batches_total", "internal_errors_total", "waiting_texts",
        "waiting_tokens", "queue_seconds_ahead", "in_flight_requests", "cache_bytes",
        "cache_hits_total", "cache_misses_total", "ready", "draining",
    ]  # fmt: skip
    histograms = [
        "queue_seconds", "tokenise_seconds", "compute_seconds", "encode_seconds", "input_tokens",
        "batch_tokens", "batch_texts", "batch_seconds",
    ]  # fmt: skip
    assert all(has(name) for name in plain)
    assert all(has(f"{name}_count") for name in histograms)
    # a server's own registry: another one's counts are not seen
    Metrics(ROUTES, ["a"]).refused(Reason.EMPTY)
    assert series(Metrics(ROUTES, ["a", "b"])) == found


def test_a_request() -> None:
    metrics = Metrics(ROUTES, ["a"])
    before = series(metrics)
    metrics.request("tei", "/embed", 200, 0.25, "answered")
    metrics.request("tei", "/embed", 200, 0.5, "answered")
    assert changes(metrics, before) == {
        "nomicbert_requests_total tei /embed 200": 2,
        "nomicbert_request_seconds_count /embed": 2,
        "nomicbert_request_seconds_sum /embed": 0.75,
        "nomicbert_outcomes_total answered": 2,
    }


def test_texts_and_refusals() -> None:
    metrics = Metrics(ROUTES, ["a", "b"])
    before = series(metrics)
    metrics.embedded("b", [3, 100, 7], 2)
    metrics.embedded("b", [5], 0)
    metrics.refused(Reason.QUEUE_FULL)
    assert changes(metrics, before) == {
        "nomicbert_texts_total b": 4,
        "nomicbert_tokens_total b": 115,
        "nomicbert_truncated_texts_total b": 2,
        "nomicbert_input_tokens_count": 4,
        "nomicbert_input_tokens_sum": 115,
        "nomicbert_refused_total queue_full": 1,
    }
    assert len(series(metrics)) == len(before)


def test_gauges_are_read_when_they_are_rendered() -> None:
    metrics = Metrics(ROUTES, ["a"])
    values = [1.0]
    metrics.read_from(metrics.waiting_tokens, lambda: values[-1])
    assert series(metrics)["nomicbert_waiting_tokens", ()] == 1
    values.append(5.0)
    assert series(metrics)["nomicbert_waiting_tokens", ()] == 5


def test_a_model() -> None:
    metrics = Metrics(ROUTES, ["a"])
    metrics.model("a", "float32", "torch", "0123")
    labels = {"model": "a", "dtype": "float32", "backend": "torch", "fingerprint": "0123"}
    assert series(metrics)["nomicbert_model_info", tuple(sorted(labels.items()))] == 1
