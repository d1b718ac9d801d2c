"""Traces: their shape, what they never hold, and a collector that is slow, broken or away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nomicbert.serve import tracing
from nomicbert.serve.dialects.ndjson import SLICE_TEXTS
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.tracing import MOST_STAGES, traces_url
from tests.support.collector import Collector, attributes, collecting
from tests.support.served import MODEL, NDJSON, Gate, tiny
from tests.support.serving import InThread, in_thread, wait_until
from tests.support.warm_python import WarmPython

KEY = "nk-a-planted-key"
SECRET = "a planted text that no collector shall see"
HEADERS = {"authorization": f"Bearer {KEY}"}
STAGES = ("tokenise", "queue", "compute", "encode")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tracing"))


@pytest.fixture(scope="module", autouse=True)
def sdk() -> Iterator[pytest.MonkeyPatch]:
    """The SDK's variables: none of this machine, and spans leave at once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield patch


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


class Traced:
    """A server, and the lines that it would log for its requests."""

    def __init__(self, server: InThread) -> None:
        self.server = server
        self.lines: list[dict[str, Any]] = []
        server.service.request_log = lambda fields: self.lines.append(dict(fields))

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[Any, str]:
        """The reply to a request, and the id of its trace from the log."""
        given = {"x-request-id": f"request-{len(self.lines)}", **HEADERS, **headers}
        reply = self.server.call(path, body, headers=given)
        return reply, self.line(given["x-request-id"]).get("trace_id", "")

    def line(self, name: str) -> dict[str, Any]:
        """The line of a request, which is written after its answer."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found.extend(line for line in self.lines if line["id"] == name)
            return bool(found)

        wait_until(is_there)
        return found[0]


@pytest.fixture(scope="module")
def traced(folder: Path, collector: Collector, sdk: object) -> Iterator[Traced]:
    flags = {"api_keys": (KEY,), "otlp_endpoint": collector.url, "otlp_service_name": "tests"}
    with in_thread(folder, **flags) as server:
        yield Traced(server)


# dialect -> path, body
ASKED: dict[str, tuple[str, Any]] = {
    "openai": ("/v1/embeddings", {"model": MODEL, "input": [SECRET, "b"]}),
    "tei": ("/embed", {"inputs": [SECRET, "b"]}),
    "nomic": ("/v1/embedding/text", {"texts": [SECRET, "b"], "model": MODEL}),
}


@pytest.mark.parametrize("dialect", ASKED)
def test_a_request_continues_its_clients_trace(
    traced: Traced, collector: Collector, dialect: str
) -> None:
    path, body = ASKED[dialect]
    trace = f"{list(ASKED).index(dialect)}{TRACE[1:]}"
    given = {"traceparent": f"00-{trace}-{PARENT}-01", "tracestate": "vendor=1"}
    reply, logged = traced.ask(path, body, **given, **{"x-request-id": f"id-{dialect}"})
    assert reply.status == 200
    assert logged == trace
    root, stages = collector.trace(trace)
    assert root.parent_span_id.hex() == PARENT
    assert root.trace_state == "vendor=1"
    assert root.name == f"POST {path}"
    assert root.status.code == root.status.STATUS_CODE_UNSET
    found = attributes(root)
    tokens = found.pop("nomicbert.tokens")
    assert found == {
        "http.request.method": "POST",
        "http.route": path,
        "http.response.status_code": 200,
        "nomicbert.request_id": f"id-{dialect}",
        "nomicbert.dialect": dialect,
        "nomicbert.model": MODEL,
        "nomicbert.outcome": "answered",
        "nomicbert.texts": 2,
        "nomicbert.truncated": 0,
    }
    if dialect == "tei":
        assert tokens == int(reply.headers["x-compute-tokens"])
    else:
        assert tokens == reply.json["usage"]["total_tokens"]
    assert tokens > 30  # the tiny vocabulary has a token per character
    assert sorted(stages) == sorted(STAGES)
    for stage in stages.values():
        assert stage.parent_span_id == root.span_id
    assert attributes(stages["tokenise"]) == {"texts": 2}
    assert attributes(stages["compute"]) == {"tokens": tokens}
    # one after another, inside of the request
    times = [root.start_time_unix_nano]
    for name in STAGES:
        times += [stages[name].start_time_unix_nano, stages[name].end_time_unix_nano]
    times.append(root.end_time_unix_nano)
    assert times == sorted(times)
    assert collector.services == {"tests"}
    assert {path for path, _ in collector.posts} == {"/v1/traces"}


@pytest.mark.parametrize(
    "given", [{}, {"traceparent": "no such thing"}, {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}]
)
def test_without_a_valid_parent_a_trace_begins(
    traced: Traced, collector: Collector, given: dict[str, str]
) -> None:
    reply, trace = traced.ask(*ASKED["openai"], **given)
    assert reply.status == 200
    assert re.fullmatch(r"[0-9a-f]{32}", trace)
    assert int(trace, 16)
    root, _ = collector.trace(trace)
    assert root.parent_span_id == b""


def test_a_long_tracestate_is_not_taken_over(traced: Traced, collector: Collector) -> None:
    trace = "a" * 32
    state = ",".join(f"vendor{n}={'v' * 50}" for n in range(20))
    _, logged = traced.ask(*ASKED["tei"], traceparent=f"00-{trace}-{PARENT}-01", tracestate=state)
    assert logged == trace
    assert collector.trace(trace)[0].trace_state == ""


REFUSED: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "field": ("/v1/embeddings", {"model": MODEL, "input": [SECRET, 1]}, {}, 400, "invalid"),
    "model": ("/v1/embeddings", {"model": SECRET, "input": "a"}, {}, 404, "unknown_model"),
    "json": ("/embed", f'{{"inputs": "{SECRET}'.encode(), {"content-type": "application/json"},
             400, "not_json"),
    "type": ("/embed", SECRET.encode(), {"content-type": "text/plain"}, 415, "content_type"),
    "key": ("/embed", {"inputs": SECRET}, {"authorization": f"Bearer {SECRET}"}, 401,
            "unauthorized"),
    "task": (f"/rerank?q={SECRET.replace(' ', '+')}", {"query": SECRET, "texts": [SECRET]}, {},
             424, "wrong_task"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal(traced: Traced, collector: Collector, name: str) -> None:
    path, body, headers, status, reason = REFUSED[name]
    reply, trace = traced.ask(path, body, **headers)
    assert reply.status == status
    root, stages = collector.trace(trace)
    found = attributes(root)
    assert found["http.response.status_code"] == status
    assert (found["nomicbert.outcome"], found["nomicbert.refused"]) == ("refused", reason)
    assert "error.type" not in found
    assert root.status.code == root.status.STATUS_CODE_UNSET  # a client's mistake
    assert not stages


@pytest.mark.parametrize(("dialect", "status"), [("openai", 500), ("tei", 424)])
def test_a_failure(
    traced: Traced,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    dialect: str,
    status: int,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Replica, "rows", fail)
    reply, trace = traced.ask(*ASKED[dialect])
    assert reply.status == status
    root, stages = collector.trace(trace)
    found = attributes(root)
    assert found["nomicbert.outcome"] == "failed"
    assert found["error.type"] == str(status)
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert root.status.message == ""
    assert not root.events  # an exception's message may quote a text
    assert sorted(stages) == ["tokenise"]


def test_a_client_that_leaves(traced: Traced, collector: Collector) -> None:
    with pytest.MonkeyPatch.context() as patch, Gate.on(patch) as gate:
        with pytest.raises(TimeoutError):
            traced.server.call(
                *ASKED["tei"], headers={"x-request-id": "left", **HEADERS}, timeout=0.5
            )
        line = traced.line("left")
        gate.open()
    root, _ = collector.trace(line["trace_id"])
    found = attributes(root)
    assert (found["http.response.status_code"], found["nomicbert.outcome"]) == (499, "disconnected")
    assert root.status.code == root.status.STATUS_CODE_UNSET


def test_probes_are_not_traced(traced: Traced, collector: Collector) -> None:
    for path in ("/health/ready", "/health", "/ping", "/metrics", "/openapi.json"):
        assert traced.server.call(path, headers=HEADERS).status == 200
    _, trace = traced.ask(*ASKED["tei"])
    collector.trace(trace)  # what came before has been exported too
    assert {attributes(s).get("http.request.method", "POST") for s in collector.spans} == {"POST"}


def test_a_stream_has_a_limited_number_of_stages(traced: Traced, collector: Collector) -> None:
    count = (MOST_STAGES // 3 + 3) * SLICE_TEXTS
    body = b'"a"\n' * count
    path = f"/v1/embeddings?model={MODEL}"
    reply, trace = traced.ask(path, body, **{"content-type": NDJSON})
    assert (reply.status, reply.body.count(b"\n")) == (200, count)
    root, _ = collector.trace(trace)
    assert sum(span.trace_id == root.trace_id for span in collector.spans) == MOST_STAGES + 1
    found = attributes(root)
    assert found["nomicbert.texts"] == count
    assert found["nomicbert.stages_left_out"] == 3 * (count // SLICE_TEXTS) - MOST_STAGES


def test_nothing_that_was_exported_holds_a_text_or_a_key(
    traced: Traced, collector: Collector
) -> None:
    """Of all tests above; this one only has to see that there is something to look through."""
    _, trace = traced.ask(*ASKED["openai"], **{"user-agent": SECRET})
    collector.trace(trace)
    exported = b"".join(body for _, body in collector.posts)
    assert bytes.fromhex(trace) in exported
    assert b"nomicbert.outcome" in exported
    for hidden in (SECRET[8:24], SECRET.replace(" ", "+"), KEY):
        assert hidden.encode() not in exported


def test_the_sampler_of_the_sdk(
    folder: Path, collector: Collector, sdk: pytest.MonkeyPatch
) -> None:
    """Also a client's own decision not to sample holds."""
    sdk.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    try:
        with in_thread(folder, otlp_endpoint=collector.url) as server:
            traced = Traced(server)
            before = len(collector.spans)
            _, unsampled = traced.ask(*ASKED["tei"])
            _, declined = traced.ask(*ASKED["tei"], traceparent=f"00-{'d' * 32}-{PARENT}-00")
            _, sampled = traced.ask(*ASKED["tei"], traceparent=f"00-{'e' * 32}-{PARENT}-01")
            collector.trace(sampled)
    finally:
        sdk.delenv("OTEL_TRACES_SAMPLER")
    assert re.fullmatch(r"[0-9a-f]{32}", unsampled)  # for the log it has an id all the same
    assert declined == "d" * 32
    assert {span.trace_id.hex() for span in collector.spans[before:]} == {sampled}


# --- a collector that does not work ---


def test_a_collector_that_hangs(folder: Path, sdk: pytest.MonkeyPatch) -> None:
    """Requests are answered, the queue stays short, and the server ends before the collector."""
    sdk.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    sdk.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    sdk.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    try:
        with collecting() as collector:
            collector.gate.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tracing.Tracing.stop, "__defaults__", (0.2,))
                with in_thread(folder, otlp_endpoint=collector.url) as server:
                    traced = Traced(server)
                    statuses = {traced.ask(*ASKED["tei"])[0].status for _ in range(40)}
                    assert statuses == {200}
                    wait_until(lambda: collector.arrived > 0)
            # the server has ended, and nothing has been answered yet
            assert collector.posts == []
            collector.gate.set()
            wait_until(lambda: collector.posts)
            first = ExportTraceServiceRequest.FromString(collector.posts[0][1])
            under_way = len(first.resource_spans[0].scope_spans[0].spans)
            # of 40 requests with five spans each: one batch was under way, 20 spans waited
            assert under_way <= 10
            wait_until(lambda: len(collector.spans) >= under_way + 20)
            assert len(collector.spans) == under_way + 20
    finally:
        sdk.delenv("OTEL_BSP_MAX_QUEUE_SIZE")
        sdk.delenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
        sdk.delenv("OTEL_EXPORTER_OTLP_TIMEOUT")


@pytest.mark.parametrize("fault", ["500", "401", "nobody listens"])
def test_a_collector_that_fails(folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered; the log says what is wrong, and does not repeat it."""
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(
        tracing, "log_line", lambda event, **fields: lines.append({"event": event, **fields})
    )
    monkeypatch.setattr(tracing.Tracing.stop, "__defaults__", (0.2,))
    with collecting() as collector:
        url = collector.url
        if fault.isdecimal():
            collector.status = int(fault)
        else:
            with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as closed:
                url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with in_thread(folder, otlp_endpoint=url) as server:
            traced = Traced(server)
            for _ in range(5):
                assert traced.ask(*ASKED["tei"])[0].status == 200
                wait_until(lambda: lines)
    assert {line["event"] for line in lines} == {"traces"}
    problems = [line["problem"] for line in lines]
    wanted = fault if fault.isdecimal() else "refused"
    assert any(wanted in problem for problem in problems), problems
    assert len(problems) <= 3
    assert SECRET not in json.dumps(lines, default=str)


# --- without traces ---

WITHOUT = """
import sys
from nomicbert.serve.server import make_server
from nomicbert.serve.settings import ServeSettings
for more in ({}, {"otlp_endpoint": sys.argv[1]}):
    server = make_server(ServeSettings(models=("m",), **more))
    print(server.service.tracing is None, "opentelemetry" in sys.modules)
"""


def test_without_the_option_opentelemetry_is_not_imported(
    warm_python: WarmPython, collector: Collector
) -> None:
    """Not even if the SDK's own variable names a collector."""
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    done = warm_python.run(WITHOUT, collector.url, env=environment)
    assert done.stdout.split() == ["True", "False", "False", "True"], done.stderr


def test_without_the_option_no_log_line_has_a_trace(folder: Path) -> None:
    with in_thread(folder) as server:
        traced = Traced(server)
        reply, trace = traced.ask(*ASKED["tei"], traceparent=f"00-{TRACE}-{PARENT}-01")
        assert (reply.status, trace) == (200, "")


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp", "https://a/otlp/v1/traces"),
        ("https://a/otlp/v1/traces", "https://a/otlp/v1/traces"),
    ],
)
def test_where_spans_are_posted(endpoint: str, wanted: str) -> None:
    assert traces_url(endpoint) == wanted
