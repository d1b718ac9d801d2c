"""A collector of traces on loopback: OTLP over HTTP, as --otlp-endpoint wants it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.serving import wait_until


class Collector:
    """Keeps what is posted to it.

    Attributes:
        url: for --otlp-endpoint.
        posts: (path, body) of each post that was answered.
        arrived: number of posts, answered or not.
        status: of its answers.
        gate: while it is cleared, posts wait for their answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.posts: list[tuple[str, bytes]] = []
        self.arrived = 0
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()

    @property
    def spans(self) -> list[Any]:
        """All spans, as messages of opentelemetry-proto."""
        return [
            span
            for resource in self._resources()
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        """The `service.name` of all spans."""
        return {
            attribute.value.string_value
            for found in self._resources()
            for attribute in found.resource.attributes
            if attribute.key == "service.name"
        }

    def _resources(self) -> list[Any]:
        found = []
        for _, body in self.posts:
            found += ExportTraceServiceRequest.FromString(body).resource_spans
        return found

    def trace(self, trace_id: str) -> tuple[Any, dict[str, Any]]:
        """The span of a request and its children by name, once it has arrived."""

        def spans() -> list[Any]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        def is_whole() -> bool:
            return any(span.kind == span.SPAN_KIND_SERVER for span in spans())

        wait_until(is_whole)
        (root,) = [span for span in spans() if span.kind == span.SPAN_KIND_SERVER]
        others = [span for span in spans() if span is not root and span.span_id != root.span_id]
        return root, {span.name: span for span in others}


def attributes(span: Any) -> dict[str, str | int]:
    """The attributes of a span."""
    found = {}
    for attribute in span.attributes:
        value = attribute.value
        found[attribute.key] = getattr(value, value.WhichOneof("value"))
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.arrived += 1
            collector.gate.wait(60)
            collector.posts.append((self.path, body))
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
