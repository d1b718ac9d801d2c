"""The protocol of Cohere for embeddings: POST /v1/embed, POST /v2/embed.

Source: Cohere's API reference, and what the Python client cohere 7.3 sends. Its four input types
for texts are nomic's task types. Where it differs: only one text per input of `inputs`, no images,
`truncate` START only where the checkpoint cuts the beginning, `max_tokens` counts prompt and
special tokens, `priority` has no effect. Ours in addition: `on_long`.
"""

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
import orjson
from torch import Tensor

from nomicbert.serve.dialects.fields import (
    as_finish,
    as_inputs,
    as_policy,
    as_prompt,
    lowered_limit,
    task_prompt,
)
from nomicbert.serve.embedded import Embedded
from nomicbert.serve.http.answers import Answer, listed
from nomicbert.serve.http.endpoint import Dialect, Handler
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.forms import Form
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service
from nomicbert.serve.settings import OnLong
from nomicbert.serve.tokens import Wanted

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
Truncate = Literal["NONE", "START", "END"]

FORMS: dict[EmbeddingType, Form] = {
    "float": Form(),
    "int8": Form("int8"),
    "uint8": Form("uint8"),
    "binary": Form("binary"),
    "ubinary": Form("ubinary"),
    "base64": Form(as_base64=True),
}
NO_IMAGES = "this server embeds texts, not images"


def render(_status: int, problem: Problem) -> object:
    """Cohere's form of an error."""
    return {"message": problem.message}


DIALECT = Dialect("cohere", {}, render)


class CohereContent(msgspec.Struct):
    """A part of an input."""

    type: Literal["text", "image_url"]
    text: str | None = None


class CohereInput(msgspec.Struct):
    """One of `inputs`."""

    content: list[CohereContent]


class CohereEmbedRequest(msgspec.Struct):
    """The body of POST /v1/embed and /v2/embed."""

    texts: list[str] | None = None
    inputs: list[CohereInput] | None = None
    images: list[str] | None = None
    model: str | None = None
    input_type: str | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: int | None = None
    truncate: Truncate | None = None
    max_tokens: int | None = None
    priority: int | None = None
    on_long: str | None = None


def embed(version: Literal["1", "2"]) -> Handler:
    """The handler of a version of the route.

    They differ without `embedding_types`: version 1 then answers with a list, not by type.
    """

    async def handler(service: Service, exchange: Exchange) -> Answer:
        service.find(None)  # while loading, 503 before the body is read
        body = decode(await exchange.json(service.settings.payload_limit), CohereEmbedRequest)
        kinds = _kinds(body.embedding_types)
        texts, field = _texts(body)
        wanted = _wanted(service, exchange, body, texts, field, kinds)
        embedded = await service.embed(exchange, wanted)
        began = time.perf_counter()
        by_type = version == "2" or body.embedding_types is not None
        meta: dict[str, object] = {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": embedded.tokens},
        }
        if warnings := _warnings(body, embedded):
            meta["warnings"] = warnings
        facts = {
            "id": exchange.id,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
            "texts": texts,
            "meta": meta,
        }
        content = [orjson.dumps(facts)[:-1], b',"embeddings":', b"{" if by_type else b""]
        for place, kind in enumerate(kinds):
            name = f'"{kind}":['.encode() if by_type else b"["
            content += await _list(FORMS[kind], embedded, b"," + name if place else name)
        content.append(b"}}" if by_type else b"}")
        service.metrics.encode_seconds.observe(time.perf_counter() - began)
        return Answer(content, headers=embedded.headers)

    return handler


async def _list(form: Form, embedded: Embedded, before: bytes) -> list[bytes]:
    """The rows in one form as a JSON list; `before` ends with its bracket."""

    def item(_index: int, row: Tensor) -> object:
        return form.value(row)

    return await listed(await form.convert_in_turns(embedded.rows), item, before, b"]")


def _kinds(given: list[EmbeddingType] | None) -> Sequence[EmbeddingType]:
    """The types of an answer, each once."""
    if given is None:
        return ("float",)
    if not given:
        raise Problem(Reason.EMPTY, "`embedding_types` cannot be empty", "embedding_types")
    return list(dict.fromkeys(given))


def _texts(body: CohereEmbedRequest) -> tuple[list[str], str]:
    """The texts, and the field that has them."""
    if body.images is not None:
        raise Problem(Reason.INVALID, NO_IMAGES, "images")
    if body.texts is not None and body.inputs is not None:
        raise Problem(Reason.INVALID, "give `texts` or `inputs`, not both", "inputs")
    if body.inputs is not None:
        return [_text(index, each) for index, each in enumerate(body.inputs)], "inputs"
    if body.texts is None:
        raise Problem(Reason.INVALID, "`texts` is missing", "texts")
    return body.texts, "texts"


def _text(index: int, given: CohereInput) -> str:
    if any(part.type == "image_url" for part in given.content):
        raise Problem(Reason.INVALID, f"inputs[{index}]: {NO_IMAGES}", "inputs")
    texts = [part.text for part in given.content if part.text is not None]
    if len(texts) != 1 or len(given.content) != 1:
        raise Problem(
            Reason.INVALID,
            f"inputs[{index}] must have one `content` with a `text`, not {len(given.content)}: "
            "send each text as an input of its own",
            "inputs",
        )
    return texts[0]


def _wanted(
    service: Service,
    exchange: Exchange,
    body: CohereEmbedRequest,
    texts: list[str],
    field: str,
    kinds: Sequence[EmbeddingType],
) -> Wanted:
    settings, model = service.settings, service.find(body.model)
    default = _default_policy(model, body.truncate)
    return Wanted(
        model=model,
        inputs=as_inputs(list(texts), field, settings.max_client_batch_size),
        field=field,
        prompt=_prompt(model, body.input_type),
        finish=as_finish(model, body.output_dimension, "output_dimension"),
        on_long=as_policy(exchange, settings, body.on_long, default),
        max_length=lowered_limit(model, body.max_tokens, "max_tokens"),
        value_bytes=sum(FORMS[kind].value_bytes for kind in kinds),
        echo=True,
    )


def _prompt(model: ServedEmbedder, input_type: str | None) -> str:
    """The checkpoint's prompt for an input type; a checkpoint without prompts gets none.

    Raises: Problem: images, or a type that is neither Cohere's nor a prompt's name.
    """
    if input_type is None:
        return as_prompt(model, None, "input_type")
    if input_type == "image":
        raise Problem(Reason.INVALID, NO_IMAGES, "input_type")
    return task_prompt(model, input_type, "input_type")


def _default_policy(model: ServedEmbedder, truncate: Truncate | None) -> OnLong:
    if truncate == "NONE":
        return "error"
    side = "START" if model.tokenizer.cuts_start else "END"
    if truncate not in (None, side):
        raise Problem(
            Reason.INVALID,
            f"`truncate` {truncate} is not supported: texts of this checkpoint lose their "
            f"{'beginning' if side == 'START' else 'end'}; send {side} or NONE",
            "truncate",
        )
    return "end"


def _warnings(body: CohereEmbedRequest, embedded: Embedded) -> list[str]:
    """What the client should know; most clients show it."""
    found, wanted, cut = [], embedded.wanted, embedded.truncated
    if cut:
        texts = "1 text was" if cut == 1 else f"{cut} texts were"
        found.append(f"{texts} cut to {wanted.max_length} tokens")
    if body.input_type is None and not wanted.prompt and wanted.model.embedder.needs_prompt:
        found.append("no input_type: this checkpoint needs one, and no prompt was put before texts")
    if body.priority:
        found.append("priority has no effect: requests with the fewest tokens computed go first")
    return found
