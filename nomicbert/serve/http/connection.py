"""uvicorn's HTTP protocol with the limits that it lacks: slow heads and bodies, large heads.

Where in the flow: below the application, one object per connection. A connection that sends nothing
is closed after `head_seconds`; half a head gets 408 then, half a body after `body_seconds`.
A stream of lines may last, but not pause, for that long. While the server itself has paused
reading, the clock stands still.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from nomicbert.serve.http.answers import NDJSON

LARGEST_HEAD = 1 << 16


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        head_seconds, body_seconds: limits; a subclass sets them (see `limited`).
    """

    head_seconds = 10.0
    body_seconds = 60.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self._timer: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._in_head = self._is_new = False
        self._unread = 0
        self._is_stream = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(transport)
        self._start(self.head_seconds, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop()
        self._stop_untaken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing: it has `body_seconds` to go on."""
        super().pause_writing()
        self._stop_untaken()
        self._untaken = self.loop.call_later(self.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_untaken()

    def data_received(self, data: bytes) -> None:
        """Count the size of a head that does not end: the parser keeps an unfinished field."""
        super().data_received(data)
        if not self._in_head:
            return
        if self._is_new:  # the data may have held the end of another request
            self._is_new = False
            return
        self._unread += len(data)
        if self._unread > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        """Start the clock of another head."""
        self._head_size = self._unread = 0
        self._in_head = self._is_new = True
        self._is_stream = False
        if self._timer is None:
            self._start(self.head_seconds, self._head_is_late)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the size of the head."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the size of the head."""
        self._grow(len(name) + len(value))
        if name.lower() == b"content-type":
            self._is_stream = value.lower().startswith(NDJSON)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete: start the clock of the body."""
        self._stop()
        self._in_head = False
        if self.transport.is_closing():
            return
        self._start(self.body_seconds, self._body_is_late)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A stream of lines has begun anew."""
        if self.transport.is_closing():
            return
        if self._is_stream:
            self._start(self.body_seconds, self._body_is_late)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        self._stop()
        if not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(b"400 Bad Request", msg)

    def _grow(self, size: int) -> None:
        self._head_size += size
        if self._head_size > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(
            b"431 Request Header Fields Too Large",
            f"the head of the request is larger than {LARGEST_HEAD} bytes",
        )

    def _head_is_late(self) -> None:
        self._timer = None
        if self._is_answering():  # an earlier request
            self._start(self.head_seconds, self._head_is_late)
        elif self._in_head:
            self._refuse(
                b"408 Request Timeout", f"the head did not come within {self.head_seconds:g} s"
            )
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        self._timer = None
        if self.flow.read_paused or self.pipeline:  # the server is busy: it will go on reading
            self._start(self.body_seconds, self._body_is_late)
            return
        self._refuse(
            b"408 Request Timeout", f"the body did not come within {self.body_seconds:g} s"
        )

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: bytes, message: str) -> None:
        """Answer below the application, unless an answer is under way, and close."""
        if self._is_answering():
            if self._in_head or self.cycle.response_started:
                self.transport.close()
                return
            # the application learns that the client is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = orjson.dumps({"error": {"message": message, "type": "invalid_request_error"}})
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, len(body), body)
        )
        self.transport.close()

    def _start(self, seconds: float, call: Any) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, call)

    def _stop_untaken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited(head_seconds: float, body_seconds: float) -> type[LimitedProtocol]:
    """The protocol with these limits, as a class, which is what uvicorn takes."""
    return type(
        "Protocol",
        (LimitedProtocol,),
        {"head_seconds": head_seconds, "body_seconds": body_seconds},
    )
