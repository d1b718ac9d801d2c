"""Traces: a span per request with a child per stage, sent to a collector over OTLP/HTTP.

Where in the flow: `endpoint` begins and ends the span of a request; `service`, `reports` and the
dialects add its stages: tokenise, queue, compute, encode. This module is imported only with
--otlp-endpoint, and it alone imports opentelemetry.

Spans hold ids, names of models and counts, never a text or a key. A background thread exports them
from a queue of limited length, so a collector that is slow or away costs spans, not requests.

Source: W3C Trace Context; OpenTelemetry's conventions for spans of HTTP servers.
"""

import logging
import threading
import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from nomicbert import __version__
from nomicbert.serve.logs import log_line

# Seconds that the end of the server waits for the last spans.
FLUSH_SECONDS = 3.0
# Stages of one request that become spans: a stream has three for every 64 texts.
MOST_STAGES = 64
# Characters of `tracestate` that are taken over; W3C asks for at least as many.
LONGEST_STATE = 512
# Seconds between two log lines about the same problem of the exporter.
SELDOM = 60.0
PATH = "/v1/traces"


class Tracing:
    """Makes the spans of a server and exports them. The variables of OpenTelemetry's SDK hold."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        """Start the thread that exports.

        Args:
            endpoint: base URL of a collector for OTLP/HTTP, as http://collector:4318.
            service_name: the resource's `service.name`.
        """
        _log_seldom()
        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        # without the hook for the interpreter's end, which would wait for the collector
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nomicbert.serve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> "RequestTrace":
        """Start the span of a request; it continues the trace of the header `traceparent`.

        Args:
            method: of HTTP.
            route: pattern of the path, not the path, which a client chooses.
            headers: name in lower case -> value.
        """
        context = None
        if "traceparent" in headers:
            carrier = {"traceparent": headers["traceparent"]}
            state = headers.get("tracestate", "")
            if 0 < len(state) <= LONGEST_STATE:
                carrier["tracestate"] = state
            context = self._propagator.extract(carrier)
        began = time.time_ns()
        span = self._tracer.start_span(
            f"{method} {route}",
            context,
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route},
            start_time=began,
        )
        return RequestTrace(self._tracer, span, began)

    def stop(self, seconds: float = FLUSH_SECONDS) -> None:
        """Export the last spans, but wait no longer than `seconds` for the collector."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(seconds)


class RequestTrace:
    """The span of one request."""

    def __init__(self, tracer: Tracer, span: Span, began: int) -> None:
        """`began`: ns since 1970."""
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span)
        # all times of a request are of one steady clock, so that no stage leaves its request
        self._offset = began - time.monotonic_ns()
        self._stages = 0

    @property
    def id(self) -> str:
        """The trace's id in hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def stage(self, name: str, seconds: float, ago: float = 0.0, **counts: int) -> None:
        """Add a stage that took `seconds` and ended `ago` seconds before now."""
        if not self._span.is_recording():  # the sampler left this trace out
            return
        self._stages += 1
        if self._stages > MOST_STAGES:
            return
        ended = self._now() - round(ago * 1e9)
        child = self._tracer.start_span(
            name, self._context, attributes=counts, start_time=ended - round(seconds * 1e9)
        )
        child.end(ended)

    def end(self, status: int, attributes: Mapping[str, str | int], *, failed: bool) -> None:
        """End the span.

        Args:
            status: of HTTP; 499 if the client left.
            attributes: name, without "nomicbert.", -> value; empty ones are left out.
            failed: whether the server is at fault.
        """
        span = self._span
        if span.is_recording():
            span.set_attribute("http.response.status_code", status)
            span.set_attributes(
                {f"nomicbert.{name}": value for name, value in attributes.items() if value != ""}
            )
            if self._stages > MOST_STAGES:
                span.set_attribute("nomicbert.stages_left_out", self._stages - MOST_STAGES)
            if failed:
                span.set_attribute("error.type", str(status))
                span.set_status(Status(StatusCode.ERROR))
        span.end(self._now())

    def _now(self) -> int:
        return time.monotonic_ns() + self._offset


def traces_url(endpoint: str) -> str:
    """Where spans are posted: `/v1/traces` below the endpoint, unless it is that already."""
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


class SeldomHandler(logging.Handler):
    """Logs problems of the exporter in the form of the server, each at most once a minute."""

    def __init__(self) -> None:
        """Nothing has been logged."""
        super().__init__(logging.WARNING)
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See the class. The template tells one problem from another; it has no values."""
        now = time.monotonic()
        if now - self._last.get(str(record.msg), -SELDOM) < SELDOM:
            return
        self._last[str(record.msg)] = now
        log_line("traces", level=record.levelno, problem=record.getMessage()[:1000])


def _log_seldom() -> None:
    log = logging.getLogger("opentelemetry")
    log.handlers = [SeldomHandler()]
    log.propagate = False
