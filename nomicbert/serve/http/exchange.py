"""One HTTP request as the dialects see it: headers, body, and whether the client still waits.

Where in the flow: `endpoint` makes it of the ASGI messages and passes it to a route's handler.
"""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from nomicbert.serve.http.answers import Answer
from nomicbert.serve.http.problems import ClientGone, Problem, Reason

if TYPE_CHECKING:
    from nomicbert.serve.tracing import RequestTrace

Result = TypeVar("Result")
Body = TypeVar("Body")

# Seconds of waiting after which a request starts to watch whether its client is still there.
WATCH_AFTER = 0.05
LONGEST_ID = 128
# Bytes of a body that is looked at again because of a number such as 8.0.
SMALL = 1 << 16
# The default of keys that only tell which struct a body is.
NULL = msgspec.Raw(b"null")
# The escape of a surrogate: msgspec reports half a pair as JSON that ends too early.
HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


class Bodies:
    """Limits the bytes of all bodies together.

    Attributes:
        limit: bytes that requests without an answer may have sent.
        held: bytes that they have sent.
    """

    def __init__(self, limit: int) -> None:
        """No body has been read."""
        self.limit = limit
        self.held = 0


class Refuses(Protocol):
    """How a protocol tells of a problem: a `Dialect` of `endpoint`."""

    def refuse(self, problem: Problem) -> Answer:
        """The answer for a problem."""


class Exchange:
    """A request.

    Attributes:
        id: the client's `x-request-id` if it is printable and short, else a random one.
        headers: name in lower case -> value.
        model: name of the model, for the log, once it is known.
        texts, tokens, truncated: counts, for the log and the trace.
        dialect: for errors, where a route has several and the body told which; None for the
            route's.
        trace: its span, or None without --otlp-endpoint.
    """

    def __init__(self, scope: Scope, receive: Receive, bodies: Bodies) -> None:
        """Read nothing of the body yet; `bodies` counts it with those of other requests."""
        self._bodies = bodies
        self._held = 0
        self.scope = scope
        self._receive = receive
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = self.headers.get("x-request-id", "")
        printable = given.isascii() and given.isprintable()
        self.id = given if 0 < len(given) <= LONGEST_ID and printable else secrets.token_hex(8)
        self.model = ""
        self.texts = 0
        self.tokens = 0
        self.truncated = 0
        self.dialect: Refuses | None = None
        self.trace: RequestTrace | None = None

    @property
    def query(self) -> dict[str, str]:
        """The query of the address."""
        text: str = self.scope["query_string"].decode("latin-1")
        return dict(parse_qsl(text, keep_blank_values=True))

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Args:
            limit: in bytes.

        Raises: Problem: larger than the limit. ClientGone.
        """
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        async for part in self.stream():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            self._hold(len(part))
            parts.append(part)
        return b"".join(parts)

    def release(self) -> None:
        """Forget the body: the request has ended."""
        self._bodies.held -= self._held
        self._held = 0

    def stage(self, name: str, seconds: float, ago: float = 0.0, **counts: int) -> None:
        """Note in the trace, if there is one, what took `seconds` and ended `ago` seconds ago."""
        if self.trace is not None:
            self.trace.stage(name, seconds, ago, **counts)

    def _hold(self, size: int) -> None:
        self._bodies.held += size
        self._held += size
        if self._bodies.held > self._bodies.limit:
            raise Problem(
                Reason.QUEUE_FULL, "too many bodies are being read: try again", retry_after=1.0
            )

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in parts, as they come.

        Raises: ClientGone.
        """
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if part := message.get("body", b""):
                yield part
            if not message.get("more_body", False):
                return

    async def json(self, limit: int) -> bytes:
        """The body of a request that says it is JSON.

        Raises: Problem: another content type, larger than the limit. ClientGone.
        """
        if self.media_type != "application/json":
            raise Problem(
                Reason.CONTENT_TYPE,
                f"the body must be JSON: send content-type application/json, not "
                f"{self.media_type[:80] or 'none'}",
            )
        return await self.body(limit)

    async def until_gone(self) -> None:
        """Wait until the client closes its connection; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def wait(
        self, future: "asyncio.Future[Result]", seconds: float, *, watch: bool = True
    ) -> Result:
        """Wait for a result while the client does.

        Args:
            future: is cancelled when nobody waits any more.
            seconds: deadline.
            watch: look whether the client is still there, by reading beyond the body.

        Raises: ClientGone. Problem: the deadline has passed. Whatever the future raises.
        """
        loop = asyncio.get_running_loop()
        watching: list[asyncio.Task[None]] = []
        reasons: list[Exception] = []

        def fail(error: Exception) -> None:
            # only a cancelled future accepts that its thread ends later with a result
            if future.cancel():
                reasons.append(error)

        async def watch_client() -> None:
            await self.until_gone()
            fail(ClientGone())

        late = loop.call_later(
            seconds,
            fail,
            Problem(
                Reason.DEADLINE, f"not computed within {seconds:g} s: try again", retry_after=1.0
            ),
        )

        def begin() -> None:
            if watch:
                watching.append(loop.create_task(watch_client()))

        look = loop.call_later(WATCH_AFTER, begin)
        try:
            return await future
        except asyncio.CancelledError:
            if not reasons:
                raise
            raise reasons[0] from None
        finally:
            late.cancel()
            look.cancel()
            for task in watching:
                task.cancel()


def is_null(value: msgspec.Raw) -> bool:
    """Whether a key that is not decoded is null, or absent with NULL as its default."""
    return memoryview(value) == memoryview(NULL)


def decode(body: bytes, kind: "type[Body]") -> Body:
    """JSON -> a struct.

    Raises: Problem: no JSON, nested too deeply, a wrong field; it names the field.
    """
    try:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "got `float`" not in str(error) or len(body) > SMALL:
                raise
            return msgspec.convert(_with_whole_numbers(msgspec.json.decode(body)), kind)
    except msgspec.ValidationError as error:
        message = str(error)
        raise Problem(Reason.INVALID, message, _field(message)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = ""
        if HALF_PAIR.search(body):
            hint = ", or it has half of a surrogate pair, such as \\ud800, which is no character"
        raise Problem(Reason.NOT_JSON, f"the body is not JSON: {error}{hint}") from error


def _with_whole_numbers(value: object) -> object:
    """The same JSON with 8 for 8.0: to JSON Schema both are integers, to msgspec only the first."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    return value


def _field(message: str) -> str | None:
    """The field that msgspec's message names, as in "... - at `$.input[0]`"."""
    _, found, place = message.partition("at `$.")
    if found:
        return place.partition("`")[0].partition(".")[0].partition("[")[0]
    _, found, name = message.partition("required field `")
    return name.partition("`")[0] if found else None


def _too_large(limit: int) -> Problem:
    return Problem(
        Reason.BODY_SIZE,
        f"the body is larger than {limit:,} bytes (--payload-limit): send fewer texts per request, "
        "or a stream with content-type application/x-ndjson",
    )
