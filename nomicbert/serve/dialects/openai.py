"""The protocol of OpenAI: POST /v1/embeddings, GET /v1/models.

Source: OpenAI's API reference, and what openai-python and openai-node send. Ours in addition:
`prompt_name` (or `task_type`), `normalize`, `embed_dtype`, `on_long`, `max_length`, `report`. Other
keys are ignored.
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
from nomicbert.serve.http.answers import Answer, as_json, listed
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.forms import Form
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.scorers import ServedScorer
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service
from nomicbert.serve.tokens import Wanted
from nomicbert.vectors.quantization import Precision

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
    embed_dtype: Precision | None = None
    on_long: str | None = None
    max_length: int | None = None
    report: bool | None = None

    @property
    def form(self) -> Form:
        """How the answer gives vectors."""
        return Form(self.embed_dtype or "float32", self.encoding_format == "base64")


async def embeddings(service: Service, exchange: Exchange) -> Answer:
    """POST /v1/embeddings, answered in one piece; `ndjson` has the streams."""
    service.find(None)  # while loading, 503 before the body is read
    body = decode(await exchange.json(service.settings.payload_limit), EmbeddingsRequest)
    wanted = as_wanted(service, exchange, body)
    embedded = await service.embed(exchange, wanted)
    began = time.perf_counter()
    form = body.form

    def item(index: int, row: Tensor) -> object:
        return {"object": "embedding", "index": index, "embedding": form.value(row)}

    rest = {
        "model": body.model or wanted.model.name, "usage": embedded.usage, **embedded.report
    }  # fmt: skip
    after = b"]," + orjson.dumps(rest)[1:]
    rows = await form.convert_in_turns(embedded.rows)
    content = await listed(rows, item, b'{"object":"list","data":[', after)
    service.metrics.encode_seconds.observe(time.perf_counter() - began)
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
    unit = body.normalize is not False
    body.form.check("embed_dtype", unit=unit)
    return Wanted(
        model=model,
        inputs=as_inputs(body.input, "input", settings.max_client_batch_size),
        field="input",
        prompt=as_prompt(model, name, "prompt_name"),
        finish=as_finish(model, body.dimensions, "dimensions", normalize=unit),
        on_long=as_policy(exchange, settings, body.on_long, "error"),
        max_length=as_limit(model, body.max_length, "max_length"),
        report=bool(body.report),
        value_bytes=body.form.value_bytes,
    )


async def models(service: Service, _exchange: Exchange) -> Answer:
    """GET /v1/models: every name that a request may give.

    Ours in addition: `root`, the name that a model's other names lead to, and once it is loaded
    `dimensions` or, of rerankers and classifiers, `labels`; `max_model_len` (tokens per text or
    pair, as vLLM calls it) and `prompts`.
    """
    data = [_model(service, name) for name in service.names.by_name]
    return as_json({"object": "list", "data": data})


async def model(service: Service, exchange: Exchange) -> Answer:
    """GET /v1/models/NAME; a name may have slashes."""
    return as_json(_model(service, exchange.scope["path_params"]["name"]))


def _model(service: Service, name: str) -> dict[str, object]:
    index = service.names.find(name)
    found: dict[str, object] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "nomicbert",
        "root": service.names.primary[index],
    }
    if service.loaded is None:
        return found
    served = service.loaded.models[index]
    found |= {"max_model_len": served.max_length, "prompts": served.facade.prompts}
    if isinstance(served, ServedEmbedder):
        return found | {"dimensions": served.width}
    return found | ({"labels": served.labels} if isinstance(served, ServedScorer) else {})
