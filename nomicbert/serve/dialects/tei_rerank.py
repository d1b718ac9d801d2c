"""TEI's routes for rerankers and classifiers: POST /rerank and /predict.

Source: as `tei`. POST /rerank has two protocols, told apart by the key of the texts: `texts` is
TEI's, answered by a bare list; `documents` is that of Jina, vLLM and Infinity (see `rerank`).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from torch import Tensor

from nomicbert.serve.dialects import openai, rerank
from nomicbert.serve.dialects.fields import as_pair_policy, check_count
from nomicbert.serve.dialects.tei import Direction, check_direction, compute_headers
from nomicbert.serve.http.answers import Answer, Header, dumps, listed
from nomicbert.serve.http.exchange import NULL, Exchange, decode, is_null
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.pairs import WantedPairs, characters_of
from nomicbert.serve.scored import Scored, probabilities, ranking
from nomicbert.serve.scorers import ServedClassifier, ServedReranker, ServedScorer
from nomicbert.serve.service import Service
from nomicbert.text.tokenizer import Pair


class TextsOrDocuments(msgspec.Struct):
    """The keys of POST /rerank that decide which protocol is meant."""

    texts: msgspec.Raw = NULL
    documents: msgspec.Raw = NULL


class RerankRequest(msgspec.Struct):
    """The body of POST /rerank with `texts`."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    on_long: str | None = None


class PredictRequest(msgspec.Struct):
    """The body of POST /predict."""

    inputs: str | list[str | list[str]]
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    raw_scores: bool | None = None
    on_long: str | None = None


async def either(service: Service, exchange: Exchange) -> Answer:
    """POST /rerank."""
    service.find_kind(None, ServedReranker)  # while loading, 503 before the body is read
    raw = await exchange.json(service.settings.payload_limit)
    keys = decode(raw, TextsOrDocuments)
    if is_null(keys.texts) and not is_null(keys.documents):
        exchange.dialect = openai.DIALECT  # vLLM's form of an error
        return await rerank.documents(
            service, exchange, decode(raw, rerank.DocumentsRequest), returned=True
        )
    return await _rerank(service, exchange, decode(raw, RerankRequest))


async def predict(service: Service, exchange: Exchange) -> Answer:
    """POST /predict: every label with its score, the best first."""
    service.find_kind(None, ServedScorer)
    body = decode(await exchange.json(service.settings.payload_limit), PredictRequest)
    models, settings = service.models, service.settings
    has_classifier = any(isinstance(one, ServedClassifier) for one in models)
    model = service.find_kind(None, ServedClassifier if has_classifier else ServedScorer)
    inputs, is_lone = as_sequences(body.inputs)
    check_count(inputs, "inputs", settings.max_client_batch_size)
    scored = await service.score(
        exchange, _wanted(service, exchange, model, body, inputs, "inputs")
    )
    logits = scored.logits
    scores = list(logits if body.raw_scores else probabilities(logits))
    names = model.labels

    def item(_index: int, row: Tensor) -> object:
        values = row.numpy()
        return [{"score": values[i], "label": names[i]} for i in ranking(row)]

    if is_lone:
        return Answer([dumps(item(0, scores[0]))], headers=_headers(scored))
    return Answer(await listed(scores, item, b"[", b"]"), headers=_headers(scored))


def as_sequences(given: str | list[str | list[str]]) -> tuple[list[str | Pair], bool]:
    """The inputs of /predict, and whether they are a single one.

    A list of one or two texts is a single input, a list of such lists a batch.

    Raises: Problem: a mixture, or another number of texts.
    """
    if isinstance(given, str):
        return [given], True
    texts = [item for item in given if isinstance(item, str)]
    if not texts:
        return [_sequence(item) for item in given if isinstance(item, list)], False
    if len(texts) < len(given):
        raise Problem(
            Reason.INVALID, "`inputs` must hold texts only, or lists of texts only", "inputs"
        )
    return [_sequence(texts)], True


def _sequence(texts: Sequence[str]) -> str | Pair:
    if len(texts) not in (1, 2):
        raise Problem(
            Reason.INVALID,
            "`inputs` must be a text, a pair of texts [a, b], or a batch of both "
            f"[[a], [a, b], ...]: not {len(texts)} texts",
            "inputs",
        )
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


async def _rerank(service: Service, exchange: Exchange, body: RerankRequest) -> Answer:
    model, texts = service.find_kind(None, ServedReranker), body.texts
    check_count(texts, "texts", service.settings.max_client_batch_size)
    pairs = [(body.query, text) for text in texts]
    echoed = sum(map(len, texts)) if body.return_text else 0
    scored = await service.score(
        exchange, _wanted(service, exchange, model, body, pairs, "texts", echoed)
    )
    logits = scored.logits
    scores = (logits if body.raw_scores else probabilities(logits))[:, 0]
    values, order = scores.numpy(), ranking(scores)

    def item(place: int, _row: Tensor) -> object:
        index = order[place]
        found: dict[str, object] = {"index": index}
        if body.return_text:
            found["text"] = texts[index]
        return found | {"score": np.float32(values[index])}

    return Answer(await listed(scored.rows, item, b"[", b"]"), headers=_headers(scored))


def _wanted(
    service: Service,
    exchange: Exchange,
    model: ServedScorer,
    body: RerankRequest | PredictRequest,
    inputs: Sequence[str | Pair],
    field: str,
    echoed: int = 0,
) -> WantedPairs:
    settings = service.settings
    check_direction(model, body.truncation_direction)
    truncate = settings.auto_truncate if body.truncate is None else body.truncate
    return WantedPairs(
        model=model,
        inputs=inputs,
        field=field,
        on_long=as_pair_policy(exchange, settings, body.on_long, "end" if truncate else "error"),
        max_length=model.max_length,
        echoed=echoed,
    )


def _headers(scored: Scored) -> list[Header]:
    wanted = scored.wanted
    characters = sum(map(characters_of, wanted.inputs))
    return [*scored.headers, *compute_headers(scored, wanted.model, characters)]
