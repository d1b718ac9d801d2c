"""Streams of lines: texts in and vectors out, of any length, in flat memory.

Where in the flow: POST /v1/embeddings with content type application/x-ndjson reads a text per line,
and with that type in `accept` answers with a line per text, in order, as batches finish. In both
cases the texts go through the engine in slices, two at a time; reading stops while they are
computed.

A line of the input is a JSON string, or an object whose `input` is the text; its `id` comes back.
A stream's settings are in the query: model, dimensions, encoding_format, prompt_name, on_long, ...
A mistake in the first slice is refused as usual. One in a later line ends the stream with a line
{"error": ...}, after the vectors of the lines before it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from nomicbert.serve.dialects import openai
from nomicbert.serve.embedded import Embedded, headers
from nomicbert.serve.http.answers import NDJSON, Answer, dumps
from nomicbert.serve.http.endpoint import SERVER_ERROR
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.forms import Form
from nomicbert.serve.http.problems import STATUS, ClientGone, Problem, Reason
from nomicbert.serve.service import Service
from nomicbert.serve.tokens import Wanted

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MEDIA = NDJSON.decode()

# Limits of a slice: texts, and characters.
SLICE_TEXTS = 64
SLICE_CHARACTERS = 1 << 16
# Slices that are computed or wait at a time.
AHEAD = 2


class Line(msgspec.Struct):
    """A line that is an object."""

    input: str
    id: str | int | None = None


@dataclass(frozen=True)
class Slice:
    """Consecutive texts of a stream, with their ids."""

    texts: list[str]
    ids: list[str | int | None]


async def embeddings(service: Service, exchange: Exchange) -> Answer:
    """POST /v1/embeddings: as a stream if the headers say so, else in one piece.

    Raises: Problem: a mistake in the settings or the first slice.
    """
    reads_lines = exchange.media_type == MEDIA
    if not reads_lines and MEDIA not in exchange.headers.get("accept", ""):
        return await openai.embeddings(service, exchange)
    service.find(None)
    limit = service.settings.payload_limit
    if reads_lines:
        asked = _settings(exchange)
    else:
        asked = decode(await exchange.json(limit), openai.EmbeddingsRequest)
    wanted = openai.as_wanted(service, exchange, asked)
    slices = _read(exchange, limit) if reads_lines else _cut(wanted)
    embedded = _embed(service, exchange, wanted, slices, is_read=not reads_lines)
    # the first slice decides the status: a mistake in it is an ordinary refusal
    first = await anext(embedded, None)
    lines = _lines(service, exchange, first, embedded, asked.form)
    # only the lines know what else was cut
    own = [] if first is None else headers([first[1].fingerprint])
    return Answer(lines, media=NDJSON, headers=own)


def _settings(exchange: Exchange) -> openai.EmbeddingsRequest:
    """The query of the address as the body of a request."""
    query: dict[str, object] = {"input": "", **exchange.query}
    try:
        return msgspec.convert(query, openai.EmbeddingsRequest, strict=False)
    except msgspec.ValidationError as error:
        raise Problem(Reason.INVALID, f"in the query of the address: {error}") from error


async def _read(exchange: Exchange, limit: int) -> AsyncIterator[Slice]:
    """Slices of the body's lines; blank lines are skipped.

    Raises: Problem: a line that is too long, or no text; after the lines before it, but for those
        of the first slice. ClientGone.
    """
    held: list[bytes] = []  # of a line that has not ended
    size = number = characters = 0
    has_ended, is_first, found = False, True, Slice([], [])
    parts = _parts(exchange)
    upcoming = _start(anext(parts))
    try:
        while not has_ended:
            part = await upcoming
            upcoming = _start(anext(parts))  # read ahead, to learn that the client is gone
            has_ended = part is None
            lines: list[bytes] = []
            if part is None:
                lines = [b"".join(held)]
            elif b"\n" in part:
                *lines, rest = b"".join([*held, part]).split(b"\n")
                held, size = [rest], len(rest)
            else:
                held.append(part)
                size += len(part)
            if size > limit:
                at = number + len(lines) + 1
                raise Problem(Reason.BODY_SIZE, f"line {at} is longer than {limit:,} bytes")
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    text, name = _line(line, number)
                except Problem:
                    if found.texts and not is_first:
                        yield found
                    raise
                found.texts.append(text)
                found.ids.append(name)
                characters += len(text)
                if len(found.texts) >= SLICE_TEXTS or characters >= SLICE_CHARACTERS:
                    if upcoming.done() and (error := upcoming.exception()):
                        raise error
                    yield found
                    is_first, found, characters = False, Slice([], []), 0
        if found.texts:
            yield found
    finally:
        upcoming.cancel()


async def _parts(exchange: Exchange) -> AsyncIterator[bytes | None]:
    """The parts of the body, then None.

    Raises: ClientGone: also after the end.
    """
    async for part in exchange.stream():
        yield part
    yield None
    await exchange.until_gone()
    raise ClientGone


def _line(line: bytes, number: int) -> tuple[str, str | int | None]:
    try:
        found = msgspec.json.decode(line, type=str | Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(
            Reason.INVALID,
            f"line {number} is neither a JSON string nor an object with a text in `input`: {error}",
            "input",
        ) from error
    return (found, None) if isinstance(found, str) else (found.input, found.id)


async def _cut(wanted: Wanted) -> AsyncIterator[Slice]:
    """Slices of the texts of an ordinary body."""
    texts = [item for item in wanted.inputs if isinstance(item, str)]
    if len(texts) < len(wanted.inputs):
        raise Problem(Reason.INVALID, "a stream takes texts, not token ids", "input")
    part: list[str] = []
    for text in texts:
        part.append(text)
        if len(part) >= SLICE_TEXTS or sum(map(len, part)) >= SLICE_CHARACTERS:
            yield Slice(part, [None] * len(part))
            part = []
    if part:
        yield Slice(part, [None] * len(part))


async def _embed(
    service: Service,
    exchange: Exchange,
    wanted: Wanted,
    slices: AsyncIterator[Slice],
    *,
    is_read: bool,
) -> AsyncIterator[tuple[Slice, Embedded]]:
    """Compute slices in order, `AHEAD` of them at a time.

    Args:
        service: of the server.
        exchange: the request.
        wanted: what the request asks for; its inputs are replaced.
        slices: of its texts.
        is_read: whether the body has been read. Until then its reader learns that the client is
            gone.

    Raises: Problem: of a slice, or of reading one, after the slices before it. ClientGone.
    """
    running: list[tuple[Slice, asyncio.Future[Embedded]]] = []
    gone = asyncio.create_task(exchange.until_gone()) if is_read else None
    problem: Problem | None = None
    count = 0

    async def first() -> tuple[Slice, Embedded]:
        part, task = running[0]
        waiting: list[asyncio.Future[Any]] = [task] if gone is None else [task, gone]
        await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
        if gone is not None and gone.done():
            raise ClientGone
        running.pop(0)
        return part, await task

    try:
        while True:
            try:
                part = await anext(slices, None)
            except Problem as error:
                problem = error
                break
            if part is None:
                break
            own = replace(wanted, inputs=part.texts, first=count)
            count += len(part.texts)
            work = service.embed(exchange, own, patient=True, watch=False)
            running.append((part, _start(work)))
            if len(running) >= AHEAD:
                yield await first()
        if gone is None and problem is None:
            gone = asyncio.create_task(exchange.until_gone())
        while running:
            yield await first()
        if problem is not None:
            raise problem
    finally:
        for _, task in running:
            task.cancel()
        if gone is not None:
            gone.cancel()


def _start(work: Awaitable[Result]) -> "asyncio.Future[Result]":
    """Start a task whose error asyncio does not report if nobody asks for it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _lines(
    service: Service,
    exchange: Exchange,
    first: tuple[Slice, Embedded] | None,
    others: AsyncIterator[tuple[Slice, Embedded]],
    form: Form,
) -> AsyncIterator[bytes]:
    """A line per text; a mistake becomes the last line."""
    index, found = 0, first
    try:
        while found is not None:
            part, embedded = found
            yield b"".join(_slice_lines(part, embedded, index, form))
            index += len(part.texts)
            found = await anext(others, None)
    except Problem as problem:
        yield _last_line(problem)
    except ClientGone:
        raise
    except Exception:  # a text that cannot be computed, or a bug: the status has been sent
        service.metrics.internal_errors.inc()
        logger.exception("request %s failed after %d texts", exchange.id, index)
        yield _last_line(Problem(Reason.INTERNAL, SERVER_ERROR))


def _last_line(problem: Problem) -> bytes:
    return dumps(openai.render(STATUS[problem.reason], problem)) + b"\n"


def _slice_lines(part: Slice, embedded: Embedded, index: int, form: Form) -> Sequence[bytes]:
    cut, whole = set(embedded.tokenised.cut), embedded.tokenised.whole
    lines = []
    for place, row in enumerate(form.convert(embedded.rows)):
        line: dict[str, object] = {
            "index": index + place,
            "embedding": form.value(row),
            "tokens": embedded.tokenised.lengths[place],
            "truncated": place in cut,
        }
        line |= {} if whole is None else {"whole": whole[place]}
        line |= {} if part.ids[place] is None else {"id": part.ids[place]}
        lines.append(dumps(line) + b"\n")
    return lines
