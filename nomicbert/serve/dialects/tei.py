"""The protocol of Hugging Face's text-embeddings-inference (TEI).

Source: the routes of huggingface/text-embeddings-inference 1.9. Where it differs: token ids are
taken only with this model's special tokens (TEI decodes and tokenises them again),
`truncation_direction` must be the checkpoint's own, and x-compute-type names the device. Our
addition: `on_long` as in `openai`.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
import torch
from torch import Tensor

from nomicbert.serve.dialects.fields import (
    Inputs,
    as_finish,
    as_inputs,
    as_policy,
    as_prompt,
    refuse_ids,
)
from nomicbert.serve.embedded import Computed, Embedded, headers
from nomicbert.serve.http.answers import Answer, Header, as_json, listed, numbers
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Body, Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.served import ServedEmbedder, ServedModel
from nomicbert.serve.service import Service
from nomicbert.serve.settings import OnLong
from nomicbert.serve.tokens import Wanted
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.similarity import similarity

ERROR_TYPES = {
    Reason.EMPTY: "Empty",
    Reason.WRONG_TASK: "Backend",
    Reason.INTERNAL: "Backend",
    Reason.QUEUE_FULL: "Overloaded",
    Reason.LOADING: "Unhealthy",
    Reason.STOPPING: "Unhealthy",
    Reason.DEADLINE: "Unhealthy",
}


def render(_status: int, problem: Problem) -> object:
    """TEI's form of an error."""
    message = problem.message
    if problem.reason in (Reason.INVALID, Reason.TOO_LONG):
        message = f"Input validation error: {message}"
    return {"error": message, "error_type": ERROR_TYPES.get(problem.reason, "Validation")}


DIALECT = Dialect(
    "tei",
    {
        Reason.INVALID: 422,
        Reason.TOO_LONG: 422,
        Reason.WRONG_TASK: 424,
        Reason.INTERNAL: 424,
    },
    render,
)

Direction = Literal["Left", "Right", "left", "right"]


class EmbedRequest(msgspec.Struct):
    """The body of POST /embed and /embed_all."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    on_long: str | None = None


class Sentences(msgspec.Struct):
    """The inputs of POST /similarity."""

    source_sentence: str
    sentences: list[str]


class Parameters(msgspec.Struct):
    """The parameters of POST /similarity."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class SimilarityRequest(msgspec.Struct):
    """The body of POST /similarity."""

    inputs: Sentences
    parameters: Parameters | None = None


class VertexRequest(msgspec.Struct):
    """The body of POST /vertex."""

    instances: list[EmbedRequest]


async def embed(service: Service, exchange: Exchange) -> Answer:
    """POST /embed: a list of vectors."""
    return await embed_body(service, exchange, await _body(service, exchange, EmbedRequest))


async def embed_all(service: Service, exchange: Exchange) -> Answer:
    """POST /embed_all: hidden states of every token, special ones included."""
    body = await _body(service, exchange, EmbedRequest)
    if body.dimensions is not None:
        raise Problem(Reason.INVALID, "`dimensions` is for vectors, not for tokens", "dimensions")
    embedded = await service.embed(exchange, _wanted(service, exchange, body, hidden=True))
    return await _rows(service, exchange, embedded)


async def similarities(service: Service, exchange: Exchange) -> Answer:
    """POST /similarity: cosine of one sentence to others."""
    body = await _body(service, exchange, SimilarityRequest)
    return await similarity_body(service, exchange, body)


async def vertex(service: Service, exchange: Exchange) -> Answer:
    """POST /vertex: several bodies of /embed in one."""
    body = await _body(service, exchange, VertexRequest)
    if not body.instances:
        raise Problem(Reason.EMPTY, "`instances` cannot be empty", "instances")
    wanted = [_wanted(service, exchange, instance) for instance in body.instances]
    service.check_answer_size(*wanted)
    content, parts = [b'{"predictions":['], []
    for place, part in enumerate(wanted):
        embedded = await service.embed(exchange, part)
        content += await listed(embedded.rows, _numbers, b",[" if place else b"[", b"]")
        parts.append(embedded)
    cut = sum(part.truncated for part in parts)
    own = headers((part.fingerprint for part in parts), cut)
    return Answer([*content, b"]}"], headers=own)


def wrong_task(task: str) -> Callable[[Service, Exchange], Awaitable[Answer]]:
    """The handler of a route of models that this server does not have."""

    async def handler(service: Service, _exchange: Exchange) -> Answer:
        assert service.models, "raises while they are being loaded"
        raise Problem(Reason.WRONG_TASK, f"the model is not a {task} model")

    return handler


async def embed_body(service: Service, exchange: Exchange, body: EmbedRequest) -> Answer:
    """The answer to a body of /embed."""
    embedded = await service.embed(exchange, _wanted(service, exchange, body))
    return await _rows(service, exchange, embedded)


async def similarity_body(service: Service, exchange: Exchange, body: SimilarityRequest) -> Answer:
    """The answer to a body of /similarity."""
    sentences = body.inputs
    if not sentences.sentences:
        raise Problem(Reason.EMPTY, "`sentences` cannot be empty", "sentences")
    asked = body.parameters or Parameters()
    request = EmbedRequest(
        [sentences.source_sentence, *sentences.sentences],
        truncate=asked.truncate,
        truncation_direction=asked.truncation_direction,
        prompt_name=asked.prompt_name,
    )
    embedded = await service.embed(exchange, _wanted(service, exchange, request))
    rows = torch.stack(embedded.rows)
    found = similarity(rows[:1], rows[1:], "cosine")[0]
    answer = as_json(found.tolist())
    answer.headers.extend(_headers(embedded))
    return answer


async def _body(service: Service, exchange: Exchange, kind: type[Body]) -> Body:
    service.find(None)  # while loading, 503 before the body is read
    return decode(await exchange.json(service.settings.payload_limit), kind)


def _wanted(
    service: Service, exchange: Exchange, body: EmbedRequest, *, hidden: bool = False
) -> Wanted:
    settings, model = service.settings, service.find(None)
    check_direction(model, body.truncation_direction)
    inputs = as_inputs(body.inputs, "inputs", settings.max_client_batch_size)
    truncate = settings.auto_truncate if body.truncate is None else body.truncate
    default: OnLong = "end" if truncate else "error"
    on_long = as_policy(exchange, settings, body.on_long, default)
    if hidden and on_long in ("chunk", "mean"):
        raise Problem(Reason.INVALID, f"`on_long` {on_long} is for vectors, not tokens", "on_long")
    return Wanted(
        model=model,
        inputs=refuse_ids(inputs, "inputs") if hidden else inputs,
        field="inputs",
        prompt=as_prompt(model, body.prompt_name, "prompt_name"),
        finish=_finish(model, body, hidden),
        on_long=on_long,
        max_length=model.max_length,
        hidden=hidden,
    )


def _finish(model: ServedEmbedder, body: EmbedRequest, hidden: bool) -> Finish:
    if hidden:
        return Finish()
    return as_finish(model, body.dimensions, "dimensions", normalize=body.normalize is not False)


async def _rows(service: Service, exchange: Exchange, embedded: Embedded) -> Answer:
    began = time.perf_counter()
    content = await listed(embedded.rows, _numbers, b"[", b"]")
    service.metrics.encode_seconds.observe(time.perf_counter() - began)
    return Answer(content, headers=_headers(embedded))


def _numbers(_index: int, row: Tensor) -> object:
    return numbers(row)


def check_direction(model: ServedModel, asked: Direction | None) -> None:
    """Refuse to cut texts at the end that the checkpoint keeps.

    Raises: Problem.
    """
    cuts_start = model.tokenizer.cuts_start
    if asked is not None and (asked.lower() == "left") != cuts_start:
        raise Problem(
            Reason.INVALID,
            f"`truncation_direction` {asked} is not supported: texts of this checkpoint lose their "
            f"{'beginning' if cuts_start else 'end'}",
            "truncation_direction",
        )


def _headers(embedded: Embedded) -> list[Header]:
    characters = sum(len(item) for item in embedded.wanted.inputs if isinstance(item, str))
    return [*embedded.headers, *compute_headers(embedded, embedded.wanted.model, characters)]


def compute_headers(computed: Computed, model: ServedModel, characters: int) -> list[Header]:
    """TEI's headers; times in whole milliseconds."""
    job, tokens = computed.tokenised.job, str(computed.tokens).encode()
    device = model.encoder.device.type
    started = job.started or job.arrived
    tokenising = round(1000 * computed.tokenise_seconds)
    queue = round(1000 * (started - job.arrived))
    inference = round(1000 * (time.monotonic() - started)) if job.arrived else 0
    total = str(tokenising + queue + inference).encode()
    return [
        (b"x-compute-type", device.encode()),
        (b"x-compute-time", total),
        (b"x-compute-characters", str(characters).encode()),
        (b"x-compute-tokens", tokens),
        (b"x-total-time", total),
        (b"x-tokenization-time", str(tokenising).encode()),
        (b"x-queue-time", str(queue).encode()),
        (b"x-inference-time", str(inference).encode()),
    ]
