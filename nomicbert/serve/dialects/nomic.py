"""The protocols of nomic's hosted API, and of its SageMaker endpoints (for `root`).

Routes of the API: POST /v1/embedding/text, GET /v1/user.
Source: the Python client nomic 3.9, and the types of @nomic-ai/atlas generated from the API's
OpenAPI document. The Python client adds up every value of `usage`, so those are integers.
"""

import time

import msgspec
import orjson
from torch import Tensor

from nomicbert.runtime import hosted
from nomicbert.runtime.hosted import MOST_TOKENS, SEARCH_DOCUMENT, LongTextMode
from nomicbert.serve.dialects.fields import as_finish, as_inputs, as_policy, task_prompt
from nomicbert.serve.http.answers import Answer, as_json, listed, numbers
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.service import Service
from nomicbert.serve.settings import OnLong
from nomicbert.serve.tokens import Wanted
from nomicbert.vectors.quantization import convert


def render(_status: int, problem: Problem) -> object:
    """FastAPI's form of an error."""
    place = ["body", *([problem.param] if problem.param else [])]
    return {"detail": [{"loc": place, "msg": problem.message, "type": problem.reason.value}]}


DIALECT = Dialect(
    "nomic",
    dict.fromkeys(
        (
            Reason.NOT_JSON, Reason.INVALID, Reason.EMPTY, Reason.TOO_LONG, Reason.UNKNOWN_MODEL,
            Reason.WRONG_TASK,
        ),
        422,
    ),
    render,
)  # fmt: skip


class TextRequest(msgspec.Struct):
    """The body of POST /v1/embedding/text."""

    texts: list[str]
    model: str | None = None
    task_type: str | None = None
    long_text_mode: LongTextMode | None = None
    max_tokens_per_text: int | None = None
    dimensionality: int | None = None
    on_long: str | None = None
    report: bool | None = None


class SagemakerRequest(msgspec.Struct):
    """The body of POST /invocations with `texts`."""

    texts: list[str]
    task_type: str | None = None
    dimensionality: int | None = None
    binary: bool | None = None
    on_long: str | None = None


async def text(service: Service, exchange: Exchange) -> Answer:
    """POST /v1/embedding/text."""
    service.find(None)  # while loading, 503 before the body is read
    body = decode(await exchange.json(service.settings.payload_limit), TextRequest)
    model = service.find(body.model)
    default: OnLong = "end" if body.long_text_mode == "truncate" else "mean"
    on_long = as_policy(exchange, service.settings, body.on_long, default)
    limit = body.max_tokens_per_text
    if limit is not None and limit < 1:
        raise Problem(
            Reason.INVALID,
            f"`max_tokens_per_text` must be at least 1, not {limit}",
            "max_tokens_per_text",
        )
    task = SEARCH_DOCUMENT if body.task_type is None else body.task_type
    prompt = task_prompt(model, task, "task_type")
    wanted = Wanted(
        model=model,
        inputs=as_inputs(list(body.texts), "texts", service.settings.max_client_batch_size),
        field="texts",
        prompt=prompt,
        finish=as_finish(
            model, hosted.width(model.embedder, body.dimensionality), "dimensionality"
        ),
        on_long=on_long,
        max_length=hosted.max_length(model.embedder, on_long, prompt, limit),
        most_tokens=(limit or MOST_TOKENS) if on_long == "mean" else None,
        report=bool(body.report),
    )
    embedded = await service.embed(exchange, wanted)
    began = time.perf_counter()

    def item(_index: int, row: Tensor) -> object:
        return numbers(row)

    rest = {"usage": embedded.usage, "model": body.model or model.name, **embedded.report}
    content = await listed(embedded.rows, item, b'{"embeddings":[', b"]," + orjson.dumps(rest)[1:])
    service.metrics.encode_seconds.observe(time.perf_counter() - began)
    return Answer(content, headers=embedded.headers)


async def sagemaker(service: Service, exchange: Exchange, body: SagemakerRequest) -> Answer:
    """POST /invocations with `texts`, as nomic.aws.sagemaker sends it; long texts are cut.

    Without a `task_type` no prompt is added: older clients put it into the text. With `binary` a
    vector is one bit per value, eight to an integer, as precision "ubinary" of `Embedder.encode`.
    """
    model, settings = service.find(None), service.settings
    task = body.task_type
    on_long = as_policy(exchange, settings, body.on_long, "end")
    prompt = "" if task is None else task_prompt(model, task, "task_type")
    wanted = Wanted(
        model=model,
        inputs=as_inputs(list(body.texts), "texts", settings.max_client_batch_size),
        field="texts",
        prompt=prompt,
        finish=as_finish(
            model, hosted.width(model.embedder, body.dimensionality), "dimensionality"
        ),
        on_long=on_long,
        max_length=hosted.max_length(model.embedder, on_long, prompt),
    )
    embedded = await service.embed(exchange, wanted)

    def item(_index: int, row: Tensor) -> object:
        return numbers(convert(row[None], "ubinary")[0] if body.binary else row)

    content = await listed(embedded.rows, item, b'{"embeddings":[', b"]}")
    return Answer(content, headers=embedded.headers)


async def user(_service: Service, _exchange: Exchange) -> Answer:
    """GET /v1/user: the Python client asks for it once, and only reads the status."""
    return as_json({"sub": "local", "email": "", "name": "local", "organizations": []})


async def image(_service: Service, _exchange: Exchange) -> Answer:
    """POST /v1/embedding/image."""
    raise Problem(Reason.UNSUPPORTED, "this server embeds texts, not images")
