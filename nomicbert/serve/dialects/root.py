"""The routes whose meaning the first model and the body decide: POST / and /invocations.

Source: TEI; for the body of /invocations with `texts` the module nomic.aws.sagemaker of the Python
client nomic 3.9.
"""

import msgspec

from nomicbert.serve.dialects import nomic, tei, tei_rerank
from nomicbert.serve.dialects.fields import Inputs
from nomicbert.serve.http.answers import Answer
from nomicbert.serve.http.exchange import NULL, Exchange, decode, is_null
from nomicbert.serve.scorers import ServedClassifier, ServedReranker
from nomicbert.serve.service import Service


class AnyRequest(msgspec.Struct):
    """A body for an embedding model, whose `inputs` decide which route is meant."""

    inputs: Inputs | dict[str, object]


class TextsOrInputs(msgspec.Struct):
    """The keys of POST /invocations that decide which protocol is meant."""

    texts: msgspec.Raw = NULL
    inputs: msgspec.Raw = NULL


async def root(service: Service, exchange: Exchange) -> Answer:
    """POST /: /rerank or /predict, or /similarity for an object of sentences, else /embed."""
    return await _any(service, exchange, takes_texts=False)


async def invocations(service: Service, exchange: Exchange) -> Answer:
    """POST /invocations: as POST /; an embedding model also takes nomic's body with `texts`."""
    return await _any(service, exchange, takes_texts=True)


async def _any(service: Service, exchange: Exchange, *, takes_texts: bool) -> Answer:
    model = service.models[0]
    if isinstance(model, ServedReranker):
        return await tei_rerank.either(service, exchange)
    if isinstance(model, ServedClassifier):
        return await tei_rerank.predict(service, exchange)
    raw = await exchange.json(service.settings.payload_limit)
    if takes_texts:
        keys = decode(raw, TextsOrInputs)
        if is_null(keys.inputs) and not is_null(keys.texts):
            return await nomic.sagemaker(service, exchange, decode(raw, nomic.SagemakerRequest))
    if isinstance(decode(raw, AnyRequest).inputs, dict):
        return await tei.similarity_body(service, exchange, decode(raw, tei.SimilarityRequest))
    return await tei.embed_body(service, exchange, decode(raw, tei.EmbedRequest))
