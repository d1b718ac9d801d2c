"""The protocol of nomic's hosted API: POST /v1/embedding/text, GET /v1/user.

Source: the Python client nomic 3.9, and the types of @nomic-ai/atlas generated from the API's
OpenAPI document. The Python client adds up every value of `usage`, so those are integers.
"""

import time

import msgspec
import orjson
from torch import Tensor

from nomicbert.runtime import hosted
from nomicbert.runtime.hosted import MOST_TOKENS, SEARCH_DOCUMENT, LongTextMode
from nomicbert.serve.dialects.fields import as_finish, as_inputs, as_policy, as_prompt
from nomicbert.serve.http.answers import Answer, as_json, listed, numbers
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.models import ServedModel
from nomicbert.serve.reports import report_encoding
from nomicbert.serve.service import Service
from nomicbert.serve.settings import OnLong
from nomicbert.serve.tokens import Wanted


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
    report_encoding(service.metrics, exchange, began)
    return Answer(content, headers=embedded.headers)


def task_prompt(model: ServedModel, task: str, field: str) -> str:
    """The prompt of one of nomic's task types; see `hosted.task_prompt_name`.

    Raises: Problem: the checkpoint has no prompt for this task.
    """
    name = hosted.task_prompt_name(model.embedder.prompts, task)
    return "" if name is None else as_prompt(model, name, field)


async def user(_service: Service, _exchange: Exchange) -> Answer:
    """GET /v1/user: the Python client asks for it once, and only reads the status."""
    return as_json({"sub": "local", "email": "", "name": "local", "organizations": []})


async def image(_service: Service, _exchange: Exchange) -> Answer:
    """POST /v1/embedding/image."""
    raise Problem(Reason.UNSUPPORTED, "this server embeds texts, not images")
