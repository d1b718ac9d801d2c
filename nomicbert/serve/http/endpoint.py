"""An ASGI application per route: what all dialects share around a handler.

Where in the flow: the router calls it. It checks the key, calls the handler, renders refusals in
the dialect's form, sends the answer, counts and logs. Errors that nobody foresaw end here: the
client gets the dialect's 500, the log a traceback with the request's id.
"""

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from starlette.types import Receive, Scope, Send

from nomicbert.serve.http.answers import Answer, Header
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.http.problems import STATUS, ClientGone, Problem, Reason

if TYPE_CHECKING:
    from nomicbert.serve.service import Service

logger = logging.getLogger(__name__)

# The status that nginx logs for a client that left; none is sent.
GONE = 499
SERVER_ERROR = "the server failed to answer; its log has the details under this request's id"


@dataclass(frozen=True)
class Dialect:
    """How one protocol tells a client that its request is refused.

    Attributes:
        name: label in metrics.
        statuses: reasons with another status than the common one.
        render: status and problem -> a JSON value.
    """

    name: str
    statuses: Mapping[Reason, int]
    render: Callable[[int, Problem], object]

    def refuse(self, problem: Problem) -> Answer:
        """The answer for a problem."""
        status = self.statuses.get(problem.reason, STATUS[problem.reason])
        headers: list[Header] = []
        if problem.retry_after is not None:
            seconds = max(problem.retry_after, 0.1)
            headers.append((b"retry-after", str(math.ceil(seconds)).encode()))
            headers.append((b"retry-after-ms", str(round(seconds * 1000)).encode()))
        if problem.reason is Reason.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        return Answer([orjson.dumps(self.render(status, problem))], status, headers=headers)


Handler = Callable[["Service", Exchange], Awaitable[Answer]]


class Endpoint:
    """One route.

    Attributes:
        dialect: of the route.
        route: its path, as a label in metrics.
    """

    def __init__(
        self,
        service: "Service",
        dialect: Dialect,
        route: str,
        handler: Handler,
        *,
        is_open: bool = False,
    ) -> None:
        """`is_open`: no key is needed."""
        self.service = service
        self.dialect = dialect
        self.route = route
        self._handler = handler
        self._is_open = is_open
        # probes and metrics come every few seconds and would bury the traces of clients
        self._is_traced = dialect.name not in ("health", "pages")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()
        service = self.service
        exchange = Exchange(scope, receive, service.bodies)
        if service.tracing is not None and self._is_traced:
            exchange.trace = service.tracing.begin(scope["method"], self.route, exchange.headers)
        service.in_flight += 1
        outcome, status, reason = "failed", GONE, ""
        try:
            try:
                if not self._is_open:
                    check_key(exchange, service.settings.api_keys)
                answer = await self._handler(service, exchange)
                outcome = "answered"
            except Problem as problem:
                service.metrics.refused(problem.reason)
                answer, outcome = (exchange.dialect or self.dialect).refuse(problem), "refused"
                reason = problem.reason.value
            except ClientGone:
                outcome = "disconnected"
                return
            except Exception:  # a bug, or a text that cannot be computed
                service.metrics.internal_errors.inc()
                logger.exception("request %s to %s failed", exchange.id, self.route)
                ours = Problem(Reason.INTERNAL, SERVER_ERROR)
                answer, outcome = (exchange.dialect or self.dialect).refuse(ours), "failed"
            status = answer.status
            try:
                await self._send(answer, exchange, send)
            except ClientGone:
                outcome = "disconnected"
        except asyncio.CancelledError:
            # by uvicorn when the time for a shutdown is over, by Ray when the client has left
            outcome = "failed" if service.draining else "disconnected"
            raise
        finally:
            exchange.release()
            service.in_flight -= 1
            seconds = time.perf_counter() - began
            service.metrics.request(self.dialect.name, self.route, status, seconds, outcome)
            if exchange.trace is not None:
                failed = outcome == "failed" or status >= 500
                exchange.trace.end(status, self._counts(exchange, outcome, reason), failed=failed)
            service.log_request(exchange, self.route, status, seconds)

    def _counts(self, exchange: Exchange, outcome: str, reason: str) -> dict[str, str | int]:
        """What the span of a request says, besides the attributes of HTTP."""
        return {
            "request_id": exchange.id,
            "dialect": self.dialect.name,
            "model": exchange.model,
            "outcome": outcome,
            "refused": reason,
            "texts": exchange.texts,
            "tokens": exchange.tokens,
            "truncated": exchange.truncated,
        }

    async def _send(self, answer: Answer, exchange: Exchange, send: Send) -> None:
        headers = [
            (b"content-type", answer.media),
            (b"x-request-id", exchange.id.encode()),
            *answer.headers,
        ]
        if self.service.draining:  # the client's next request shall reach another server
            headers.append((b"connection", b"close"))
        content = answer.content
        if isinstance(content, list):
            if answer.status != 304:  # its length would be that of what the client has
                headers.append((b"content-length", str(sum(map(len, content))).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            last = len(content) - 1
            for place, part in enumerate(content):
                await send({"type": "http.response.body", "body": part, "more_body": place < last})
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for part in content:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def check_key(exchange: Exchange, keys: tuple[str, ...]) -> None:
    """Refuse a request without a valid key, if there are any.

    Raises: Problem.
    """
    if not keys:
        return
    kind, _, given = exchange.headers.get("authorization", "").partition(" ")
    given_bytes = given.strip().encode("latin-1")
    # every key is compared, in time that does not depend on the first difference
    found = [hmac.compare_digest(given_bytes, key.encode()) for key in keys]
    if kind.lower() != "bearer" or not any(found):
        raise Problem(
            Reason.UNAUTHORIZED, "a valid API key is needed: send authorization: Bearer KEY"
        )
