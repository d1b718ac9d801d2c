"""Reranking as Cohere, Jina, vLLM and Infinity have it: POST /v1/rerank, /v2/rerank, and /rerank.

Source: the Python clients cohere 7.3 and infinity_client 0.0.78, Jina's and vLLM's API references.
Scores are the sigmoid of the logits, so between 0 and 1 whatever the checkpoint's activation; with
Infinity's `raw_scores` the logits. The answer has the keys of all these protocols.
`max_chunks_per_doc` is ignored: a document is scored as a whole. Ours in addition: `on_long`.
"""

import msgspec
import numpy as np
import orjson
from torch import Tensor

from nomicbert.serve.dialects.fields import as_pair_policy, check_count
from nomicbert.serve.http.answers import Answer, listed
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.pairs import WantedPairs
from nomicbert.serve.scored import Scored, probabilities, ranking
from nomicbert.serve.scorers import ServedReranker
from nomicbert.serve.service import Service


class Document(msgspec.Struct):
    """A document as an object; its other keys are ignored."""

    text: str


class DocumentsRequest(msgspec.Struct):
    """The body of POST /v1/rerank, /v2/rerank, and of /rerank with `documents`."""

    query: str
    documents: list[str | Document]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None
    max_tokens_per_doc: int | None = None
    on_long: str | None = None


async def v1(service: Service, exchange: Exchange) -> Answer:
    """POST /v1/rerank."""
    return await documents(service, exchange, await _body(service, exchange), version="1")


async def v2(service: Service, exchange: Exchange) -> Answer:
    """POST /v2/rerank."""
    return await documents(service, exchange, await _body(service, exchange), version="2")


async def documents(
    service: Service,
    exchange: Exchange,
    body: DocumentsRequest,
    *,
    version: str = "2",
    returned: bool = False,
) -> Answer:
    """The answer to a body with `documents`.

    Args:
        service: of the server.
        exchange: the request.
        body: as it was sent.
        version: of Cohere's API.
        returned: whether documents are returned to requests that do not say.

    Raises: Problem; errors of `Service.score`.
    """
    model, settings = service.find_kind(body.model, ServedReranker), service.settings
    check_count(body.documents, "documents", settings.max_client_batch_size)
    for name, value in (("top_n", body.top_n), ("max_tokens_per_doc", body.max_tokens_per_doc)):
        if value is not None and value < 1:
            raise Problem(Reason.INVALID, f"`{name}` must be at least 1, not {value}", name)
    texts = [item if isinstance(item, str) else item.text for item in body.documents]
    with_text = returned if body.return_documents is None else body.return_documents
    scored = await service.score(
        exchange,
        WantedPairs(
            model=model,
            inputs=[(body.query, text) for text in texts],
            field="documents",
            on_long=as_pair_policy(exchange, settings, body.on_long, "end"),
            max_length=model.max_length,
            max_second=body.max_tokens_per_doc,
            echoed=sum(map(len, texts)) if with_text else 0,
        ),
    )
    logits = scored.logits
    scores = (logits if body.raw_scores else probabilities(logits))[:, 0]
    values, order = scores.numpy(), ranking(scores)[: body.top_n]

    def item(place: int, _row: Tensor) -> object:
        index = order[place]
        found: dict[str, object] = {"index": index, "relevance_score": np.float32(values[index])}
        return found | {"document": {"text": texts[index]}} if with_text else found

    before = {"id": exchange.id, "model": body.model or model.name}
    after = {"usage": scored.usage, "meta": _meta(scored, version)}
    content = await listed(
        scored.rows[: len(order)],
        item,
        orjson.dumps(before)[:-1] + b',"results":[',
        b"]," + orjson.dumps(after)[1:],
    )
    return Answer(content, headers=scored.headers)


async def _body(service: Service, exchange: Exchange) -> DocumentsRequest:
    service.find_kind(None, ServedReranker)  # while loading, 503 before the body is read
    return decode(await exchange.json(service.settings.payload_limit), DocumentsRequest)


def _meta(scored: Scored, version: str) -> dict[str, object]:
    """Cohere's `meta`; a search unit is a request."""
    found: dict[str, object] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": scored.tokens},
    }
    if scored.truncated:
        wanted = scored.wanted
        limit = f"{wanted.max_length} tokens with its query"
        if wanted.max_second is not None:
            limit += f", or {wanted.max_second} without"
        found["warnings"] = [
            f"{scored.truncated} of {len(wanted.inputs)} documents were cut: a document may have "
            f"{limit}"
        ]
    return found
