"""The protocol of OpenAI: POST /v1/embeddings, GET /v1/models.

Source: OpenAI's API reference, and what openai-python and openai-node send. Ours in addition:
`prompt_name` (or `task_type`), `normalize`, `on_long`, `max_length`, `report`. Other keys are
ignored.
"""

import time
from typing import Literal

import msgspec
import orjson
from torch import Tensor

from nomicbert.serve.dialects.fields import (
    Inputs,
    as_finish,
    as_inputs,
    as_limit,
    as_policy,
    as_prompt,
)
from nomicbert.serve.http.answers import (
    BASE64_BYTES,
    FLOAT_BYTES,
    Answer,
    as_json,
    base64,
    listed,
    numbers,
)
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.reports import report_encoding
from nomicbert.serve.service import Service
from nomicbert.serve.tokens import Wanted

Encoding = Literal["float", "base64"]

CODES = {
    Reason.TOO_LONG: "context_length_exceeded",
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.UNAUTHORIZED: "invalid_api_key",
    Reason.QUEUE_FULL: "rate_limit_exceeded",
}


def render(status: int, problem: Problem) -> object:
    """OpenAI's form of an error."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    code = CODES.get(problem.reason, problem.reason.value)
    return {
        "error": {
            "message": problem.message, "type": kind, "param": problem.param, "code": code
        }
    }  # fmt: skip


DIALECT = Dialect("openai", {}, render)


class EmbeddingsRequest(msgspec.Struct):
    """The body of POST /v1/embeddings."""

    input: Inputs
    model: str | None = None
    encoding_format: Encoding | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    task_type: str | None = None
    normalize: bool | None = None
    on_long: str | None = None
    max_length: int | None = None
    report: bool | None = None


async def embeddings(service: Service, exchange: Exchange) -> Answer:
    """POST /v1/embeddings, answered in one piece; `ndjson` has the streams."""
    service.find(None)  # while loading, 503 before the body is read
    body = decode(await exchange.json(service.settings.payload_limit), EmbeddingsRequest)
    wanted = as_wanted(service, exchange, body)
    embedded = await service.embed(exchange, wanted)
    began = time.perf_counter()
    write = base64 if body.encoding_format == "base64" else numbers

    def item(index: int, row: Tensor) -> object:
        return {"object": "embedding", "index": index, "embedding": write(row)}

    rest = {
        "model": body.model or wanted.model.name, "usage": embedded.usage, **embedded.report
    }  # fmt: skip
    after = b"]," + orjson.dumps(rest)[1:]
    content = await listed(embedded.rows, item, b'{"object":"list","data":[', after)
    report_encoding(service.metrics, exchange, began)
    return Answer(content, headers=embedded.headers)


def as_wanted(service: Service, exchange: Exchange, body: EmbeddingsRequest) -> Wanted:
    """What the body asks for.

    Raises: Problem: an invalid value.
    """
    settings = service.settings
    if body.model is None and not settings.any_model_name:
        raise Problem(Reason.INVALID, "`model` is missing: send a name of GET /v1/models", "model")
    model = service.find(body.model)
    name = body.prompt_name if body.prompt_name is not None else body.task_type
    return Wanted(
        model=model,
        inputs=as_inputs(body.input, "input", settings.max_client_batch_size),
        field="input",
        prompt=as_prompt(model, name, "prompt_name"),
        finish=as_finish(
            model, body.dimensions, "dimensions", normalize=body.normalize is not False
        ),
        on_long=as_policy(exchange, settings, body.on_long, "error"),
        max_length=as_limit(model, body.max_length, "max_length"),
        report=bool(body.report),
        value_bytes=BASE64_BYTES if body.encoding_format == "base64" else FLOAT_BYTES,
    )


async def models(service: Service, _exchange: Exchange) -> Answer:
    """GET /v1/models: every name that a request may give."""
    data = [_model(name) for name in service.names.by_name]
    return as_json({"object": "list", "data": data})


async def model(service: Service, exchange: Exchange) -> Answer:
    """GET /v1/models/NAME; a name may have slashes."""
    name = exchange.scope["path_params"]["name"]
    service.names.find(name)
    return as_json(_model(name))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "nomicbert"}
