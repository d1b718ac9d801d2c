"""The protocol of nomic's hosted API: POST /v1/embedding/text, GET /v1/user.

Source: the Python client nomic 3.9, and the types of @nomic-ai/atlas generated from the API's
OpenAPI document. The Python client adds up every value of `usage`, so those are integers.
"""

import time
from typing import Literal

import msgspec
import orjson
from torch import Tensor

from nomicbert.serve.answers import Answer, as_json, listed, numbers
from nomicbert.serve.endpoint import Dialect
from nomicbert.serve.exchange import Exchange, decode
from nomicbert.serve.fields import as_finish, as_inputs, as_policy, as_prompt
from nomicbert.serve.models import ServedModel
from nomicbert.serve.problems import Problem, Reason
from nomicbert.serve.service import Service
from nomicbert.serve.settings import OnLong
from nomicbert.serve.tokens import Wanted
from nomicbert.text.prompts import DOCUMENT_NAMES, NOMIC_TASKS, QUERY_NAMES

LongTextMode = Literal["truncate", "mean"]

# With "mean", the tokens of a text by default: the hosted API's.
MOST_TOKENS = 8192
SEARCH_QUERY, SEARCH_DOCUMENT = "search_query", "search_document"


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
        finish=as_finish(model, _width(model, body.dimensionality), "dimensionality"),
        on_long=on_long,
        max_length=_max_length(model, on_long, limit, prompt),
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


def task_prompt(model: ServedModel, task: str, field: str) -> str:
    """The prompt of one of nomic's task types.

    A checkpoint with other names for queries and documents gets those, as `encode_query` and
    `encode_document` do; one without any prompts gets none.

    Raises: Problem: the checkpoint has no prompt for this task.
    """
    prompts = model.embedder.prompts
    if task in prompts or task not in NOMIC_TASKS:
        return as_prompt(model, task, field)
    others = {SEARCH_QUERY: QUERY_NAMES, SEARCH_DOCUMENT: DOCUMENT_NAMES}.get(task)
    if others is not None:
        found = next((name for name in others if name in prompts), None)
        return "" if found is None else as_prompt(model, found, field)
    return as_prompt(model, task, field) if any(prompts.values()) else ""


def _width(model: ServedModel, given: int | None) -> int:
    """Without `dimensionality`, the recipe over the whole width: v1.5's layer_norm is applied too.

    Source: `LLamaModel::embedInternal` of nomic-ai/gpt4all, which follows the hosted API.
    """
    return given if given is not None else model.embedder.truncate_dim or model.width


def _max_length(model: ServedModel, on_long: OnLong, limit: int | None, prompt: str) -> int:
    """Tokens per text or window, special tokens included; `limit` leaves them and the prompt out.

    Windows are no longer than the texts that the checkpoint was trained on (source: as above).
    """
    if on_long == "mean":
        trained = model.embedder.model.config.max_trained_positions
        return min(model.max_length, trained or model.max_length)
    if limit is None:
        return model.max_length
    return min(model.max_length, limit + model.tokenizer.count([prompt])[0])


async def user(_service: Service, _exchange: Exchange) -> Answer:
    """GET /v1/user: the Python client asks for it once, and only reads the status."""
    return as_json({"sub": "local", "email": "", "name": "local", "organizations": []})


async def image(_service: Service, _exchange: Exchange) -> Answer:
    """POST /v1/embedding/image."""
    raise Problem(Reason.UNSUPPORTED, "this server embeds texts, not images")
