"""A small HTTP/1.1 client on asyncio: one request at a time per connection, kept alive.

Errors of the network are values of a `Reply`, never exceptions: a load test counts them.
"""

import asyncio
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.serve.answer import Answer, Malformed

TIMED_OUT = "timed out"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request.

    Attributes:
        status: 0 if no complete answer came.
        body: of the answer.
        error: why no answer came: TIMED_OUT, "connect: ...", "reset", "closed", "malformed".
        ended: time.perf_counter() of the last byte, or of the error.
        head: header fields in lower case.
    """

    status: int
    body: bytes
    error: str
    ended: float
    head: bytes = b""


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        url: as it was given.
        host: a numerical address, so that no connection waits for a look-up.
        prefix: path of the URL, without a slash at its end.
        authority: value of the Host field.
    """

    url: str
    host: str
    port: int
    prefix: str
    authority: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL and look its host up.

        Raises: ValueError: not http, no host, a bad port, an unknown host.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"--url {url}: it must look like http://127.0.0.1:8080, without TLS")
        try:
            port = parts.port or 80
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (ValueError, OSError) as error:
            raise ValueError(f"--url {url}: {error}") from error
        host = str(found[0][4][0])
        authority = parts.netloc.rpartition("@")[2]
        return cls(url, host, port, parts.path.rstrip("/"), authority)

    def head(self, path: str, key: str | None = None) -> bytes:
        """The start of a POST request, up to the value of Content-Length."""
        tail = path.rpartition("/")[2]
        whole = self.prefix if self.prefix.endswith(f"/{tail}") else f"{self.prefix}{path}"
        allowed = f"Authorization: Bearer {key}\r\n" if key else ""
        return (
            f"POST {whole} HTTP/1.1\r\nHost: {self.authority}\r\n{allowed}"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def get(self, path: str, key: str | None = None) -> bytes:
        """A whole GET request; `path` replaces the path of the URL."""
        allowed = f"Authorization: Bearer {key}\r\n" if key else ""
        return f"GET {path} HTTP/1.1\r\nHost: {self.authority}\r\n{allowed}\r\n".encode()


class Wire(asyncio.Protocol):
    """One TCP connection, which carries one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.waiter: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, waiter: "asyncio.Future[Reply]") -> None:
        assert self.transport is not None
        self.answer, self.waiter = Answer(), waiter
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.waiter is None or self.answer is None:
            self.drop()  # bytes that nobody asked for, such as 408 on an idle connection
            return
        try:
            done = self.answer.feed(data)
        except Malformed:
            self.give_up("malformed")
            return
        if done:
            self._finish(self.answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and exc is None and self.answer.end():
            self._finish(self.answer)
        else:
            self.give_up("reset" if exc else "closed")

    def give_up(self, error: str) -> None:
        """End the request in flight, if there is one, and the connection."""
        self._set(Reply(0, b"", error, time.perf_counter()))
        self.drop()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _finish(self, answer: Answer) -> None:
        now = time.perf_counter()
        if not answer.keeps:
            self.drop()
        self._set(Reply(answer.status, answer.body, "", now, answer.head))

    def _set(self, reply: Reply) -> None:
        waiter, self.waiter, self.answer = self.waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)


class Connection:
    """A connection that is opened when it is first used, and anew when it was closed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self.wire = Wire()
        self.closed = False

    async def ask(self, request: bytes, timeout: float) -> Reply:
        """Send a request and wait for its answer, `timeout` seconds at most."""
        deadline = self.loop.time() + timeout
        transport = self.wire.transport
        if transport is None or transport.is_closing():
            if error := await self.open(timeout):
                return Reply(0, b"", error, time.perf_counter())
        if self.closed:
            return Reply(0, b"", INTERRUPTED, time.perf_counter())
        waiter: asyncio.Future[Reply] = self.loop.create_future()
        self.wire.send(request, waiter)
        timer = self.loop.call_at(deadline, self.wire.give_up, TIMED_OUT)
        try:
            return await waiter
        finally:
            timer.cancel()

    async def open(self, timeout: float) -> str:
        """Connect; return an error, or ""."""
        address = self.address
        making = self.loop.create_connection(Wire, address.host, address.port)
        try:
            _, self.wire = await asyncio.wait_for(making, timeout)
        except (asyncio.TimeoutError, TimeoutError):
            return TIMED_OUT
        except ConnectionRefusedError:
            return "connect: refused"
        except OSError as error:
            return f"connect: {error.strerror or error}"
        if self.wire.transport is None:
            return "closed"
        return ""

    def close(self) -> None:
        """Close for good; a request in flight ends as INTERRUPTED."""
        self.closed = True
        self.wire.give_up(INTERRUPTED)
