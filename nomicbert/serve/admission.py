"""How much may wait: requests are refused while too many tokens or requests are ahead of them.

Where in the flow: `service.embed` enters before tokenising, with an estimate of the tokens, and
gives the estimate back when the true number is in the scheduler.
"""

import asyncio
import time

from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.http.problems import Problem, Reason

# Seconds between two looks of a stream that waits for room.
LOOK = 0.01
# Seconds of work that may wait, without --max-waiting-tokens, and the least number of tokens.
QUEUE_SECONDS = 30
LEAST_WAITING = 1 << 19


def default_limit(rate: float) -> int:
    """Tokens that may wait, without --max-waiting-tokens.

    Args:
        rate: tokens per second of all devices together; 0 if it was not measured.
    """
    return max(LEAST_WAITING, int(QUEUE_SECONDS * rate))


class Place:
    """A request that has been admitted; a context manager."""

    def __init__(self, admission: "Admission", tokens: int) -> None:
        """`tokens`: the estimate."""
        self._admission = admission
        self._tokens = tokens

    def leave(self) -> None:
        """Give the estimate back."""
        self._admission.expected -= self._tokens
        self._tokens = 0

    def __enter__(self) -> "Place":
        """Return the place itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """The request has ended."""
        self.leave()
        self._admission.requests -= 1


class Admission:
    """Limits of what waits.

    Attributes:
        limit: tokens that may wait.
        expected: estimated tokens of requests that are being tokenised.
        requests: admitted requests that have no answer yet.
    """

    def __init__(self, limit: int, most_requests: int, engine: Engine) -> None:
        """See the attributes; `most_requests` limits `requests`."""
        self.limit = limit
        self.expected = 0
        self.requests = 0
        self._most_requests = most_requests
        self._turn = asyncio.Lock()
        self._engine = engine

    async def enter(self, tokens: int, seconds: float = 0.0) -> Place:
        """Admit a request.

        Args:
            tokens: estimate for the request.
            seconds: how long it waits for room, in the order of arrival.

        Raises: Problem: too much waits already, or the request alone is larger than the limit.
        """
        if tokens > self.limit:
            raise Problem(
                Reason.QUEUE_SIZE,
                f"about {tokens:,} tokens are more than the whole queue of {self.limit:,} "
                "(--max-waiting-tokens): send fewer texts per request, or a stream with "
                "content-type application/x-ndjson",
            )
        if seconds and not self._has_room(tokens):
            end = time.monotonic() + seconds
            async with self._turn:  # only the first of those that wait looks for room
                while not self._has_room(tokens) and time.monotonic() < end:
                    await asyncio.sleep(LOOK)
                if self._has_room(tokens):
                    return self._admit(tokens)
        if not self._has_room(tokens):
            ahead = self._engine.seconds_ahead()
            raise Problem(
                Reason.QUEUE_FULL,
                f"the queue is full, with about {ahead:.1f} s of work: try again later",
                retry_after=min(max(ahead / 2, 0.2), 30.0),
            )
        return self._admit(tokens)

    def _admit(self, tokens: int) -> Place:
        self.expected += tokens
        self.requests += 1
        return Place(self, tokens)

    def _has_room(self, tokens: int) -> bool:
        waiting = self._engine.scheduler.waiting_tokens + self.expected
        return waiting + tokens <= self.limit and self.requests < self._most_requests
