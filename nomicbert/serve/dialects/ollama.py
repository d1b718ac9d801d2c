"""The protocol of ollama for embeddings: POST /api/embed, POST /api/embeddings.

Source: ollama's API reference and server/routes.go of 2026-08, and what its Python and JavaScript
clients send. Bodies are read as JSON whatever their content type is. Where it differs: `dimensions`
follows the checkpoint's recipe (ollama slices and scales, without nomic's layer_norm) and must fit
the model, a cut is reported, nothing but `num_ctx` is read from `options`, and `keep_alive` has no
effect. Ours in addition: `prompt_name`, `on_long`. `ollama_models` has the other routes.
"""

import time
from collections.abc import Sequence

import msgspec
import orjson
from torch import Tensor

from nomicbert.serve.dialects import health
from nomicbert.serve.dialects.fields import (
    Inputs,
    as_finish,
    as_inputs,
    as_policy,
    as_prompt,
    lowered_limit,
)
from nomicbert.serve.http.answers import Answer, as_json, dumps, listed, numbers
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.reports import report_encoding
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service
from nomicbert.serve.tokens import Wanted
from nomicbert.vectors.pooling import Finish

LATEST = ":latest"
# Clients compare this message.
TOO_LONG = "the input length exceeds the context length"


def render(_status: int, problem: Problem) -> object:
    """Ollama's form of an error."""
    if problem.reason is Reason.TOO_LONG:
        return {"error": TOO_LONG, "detail": problem.message}
    return {"error": problem.message}


DIALECT = Dialect("ollama", {Reason.QUEUE_FULL: 503}, render)


class OllamaOptions(msgspec.Struct):
    """Those of ollama's options that matter to embeddings."""

    num_ctx: int | None = None


class OllamaEmbedRequest(msgspec.Struct):
    """The body of POST /api/embed."""

    model: str | None = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    options: OllamaOptions | None = None
    prompt_name: str | None = None
    on_long: str | None = None


class OllamaEmbeddingsRequest(msgspec.Struct):
    """The body of POST /api/embeddings."""

    model: str | None = None
    prompt: str | None = None
    truncate: bool | None = None
    options: OllamaOptions | None = None
    prompt_name: str | None = None
    on_long: str | None = None


async def embed(service: Service, exchange: Exchange) -> Answer:
    """POST /api/embed: unit vectors."""
    began = time.perf_counter_ns()
    service.find(None)  # while loading, 503 before the body is read
    body = decode(await exchange.body(service.settings.payload_limit), OllamaEmbedRequest)
    model = find(service, body.model)
    finish = as_finish(model, body.dimensions, "dimensions")
    wanted = _wanted(service, exchange, model, body, body.input or "", "input", finish)
    name = body.model or model.name
    if not body.input:
        return as_json({"model": name, "embeddings": []})
    embedded = await service.embed(exchange, wanted)
    writing = time.perf_counter()

    def item(_index: int, row: Tensor) -> object:
        return numbers(row)

    before = orjson.dumps({"model": name})[:-1] + b',"embeddings":['
    content = await listed(embedded.rows, item, before, b"]")
    rest = {
        "total_duration": time.perf_counter_ns() - began,
        "load_duration": 0,  # a request never loads a model
        "prompt_eval_count": embedded.tokens,
    }
    content.append(b"," + orjson.dumps(rest)[1:])
    report_encoding(service.metrics, exchange, writing)
    return Answer(content, headers=embedded.headers)


async def embeddings(service: Service, exchange: Exchange) -> Answer:
    """POST /api/embeddings: one vector, which ollama does not scale to unit length."""
    service.find(None)
    body = decode(await exchange.body(service.settings.payload_limit), OllamaEmbeddingsRequest)
    model = find(service, body.model)
    finish = as_finish(model, None, "dimensions", normalize=False)
    wanted = _wanted(service, exchange, model, body, body.prompt or "", "prompt", finish)
    if not body.prompt:
        return as_json({"embedding": []})
    embedded = await service.embed(exchange, wanted)
    content = dumps({"embedding": numbers(embedded.rows[0])})
    return Answer([content], headers=embedded.headers)


async def root(service: Service, exchange: Exchange) -> Answer:
    """GET /: as TEI's, but ollama's clients get the line that tells them who answers."""
    answer = await health.health(service, exchange)
    agent = exchange.headers.get("user-agent", "").lower()
    if answer.status == 200 and agent.startswith("ollama"):
        return Answer([b"Ollama is running"], media=b"text/plain; charset=utf-8")
    return answer


def find(service: Service, name: str | None) -> ServedEmbedder:
    """The model of this name, which may end with ":latest".

    Raises: Problem: unknown, missing, or not loaded yet.
    """
    if name is None and not service.settings.any_model_name:
        raise Problem(Reason.INVALID, "`model` is missing: send a name of GET /api/tags", "model")
    known, names = name, service.names
    if name is not None and not names.knows(name) and names.knows(name.removesuffix(LATEST)):
        known = name.removesuffix(LATEST)
    try:
        return service.find(known)
    except Problem as problem:
        if problem.reason is not Reason.UNKNOWN_MODEL:
            raise
        message = f"model '{name}' not found"
        raise Problem(Reason.UNKNOWN_MODEL, message, "model") from problem


def _wanted(
    service: Service,
    exchange: Exchange,
    model: ServedEmbedder,
    body: OllamaEmbedRequest | OllamaEmbeddingsRequest,
    texts: str | Sequence[str],
    field: str,
    finish: Finish,
) -> Wanted:
    settings = service.settings
    num_ctx = None if body.options is None else body.options.num_ctx
    inputs: Inputs = texts if isinstance(texts, str) else list(texts)
    return Wanted(
        model=model,
        inputs=as_inputs(inputs, field, settings.max_client_batch_size),
        field=field,
        prompt=as_prompt(model, body.prompt_name, "prompt_name"),
        finish=finish,
        on_long=as_policy(
            exchange, settings, body.on_long, "error" if body.truncate is False else "end"
        ),
        max_length=lowered_limit(model, num_ctx, "num_ctx"),
    )
