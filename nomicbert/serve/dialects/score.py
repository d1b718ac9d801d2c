"""Scores of pairs as vLLM has them: POST /score and /v1/score.

Source: vLLM's OpenAI-compatible server. The scores are those of `CrossEncoder.predict`, with
`use_activation: false` the logits. Ours in addition: `on_long`.
"""

import time

import msgspec
import numpy as np
import orjson
from torch import Tensor

from nomicbert.serve.dialects.fields import as_pair_policy, check_count
from nomicbert.serve.http.answers import Answer, listed
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.pairs import PairPolicy, WantedPairs
from nomicbert.serve.scorers import ServedReranker
from nomicbert.serve.service import Service
from nomicbert.text.tokenizer import Pair

Texts = str | list[str] | None
# Names of the two sides.
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))


class ScoreRequest(msgspec.Struct):
    """The body of POST /score: one of three pairs of names, see SIDES."""

    text_1: Texts = None
    text_2: Texts = None
    queries: Texts = None
    documents: Texts = None
    data_1: Texts = None
    data_2: Texts = None
    model: str | None = None
    truncate_prompt_tokens: int | None = None
    use_activation: bool | None = None
    on_long: str | None = None


async def score(service: Service, exchange: Exchange) -> Answer:
    """POST /score and /v1/score."""
    service.find_kind(None, ServedReranker)  # while loading, 503 before the body is read
    body = decode(await exchange.json(service.settings.payload_limit), ScoreRequest)
    model, settings = service.find_kind(body.model, ServedReranker), service.settings
    pairs, field = as_sides(body, settings.max_client_batch_size)
    policy: PairPolicy = "error" if body.truncate_prompt_tokens is None else "end"
    scored = await service.score(
        exchange,
        WantedPairs(
            model=model,
            inputs=pairs,
            field=field,
            on_long=as_pair_policy(exchange, settings, body.on_long, policy),
            max_length=_limit(model, body.truncate_prompt_tokens),
        ),
    )
    scores = scored.logits[:, 0] if body.use_activation is False else scored.scores()
    values = scores.numpy()

    def item(index: int, _row: Tensor) -> object:
        return {"index": index, "object": "score", "score": np.float32(values[index])}

    before = {
        "id": exchange.id,
        "object": "list",
        "created": int(time.time()),
        "model": body.model or model.name,
    }
    content = await listed(
        scored.rows,
        item,
        orjson.dumps(before)[:-1] + b',"data":[',
        b"]," + orjson.dumps({"usage": scored.usage})[1:],
    )
    return Answer(content, headers=scored.headers)


def as_sides(body: ScoreRequest, most: int | None) -> tuple[list[Pair], str]:
    """The pairs of a body, and the name of its second side.

    One text on the first side goes with each of the second.

    Raises: Problem: no side, one side, sides of several names, or of numbers that do not fit.
    """
    given = [names for names in SIDES if any(getattr(body, name) is not None for name in names)]
    if len(given) != 1 or any(getattr(body, name) is None for name in given[0]):
        wanted = ", or ".join(f"`{one}` and `{other}`" for one, other in SIDES)
        raise Problem(Reason.INVALID, f"send {wanted}", "text_1")
    firsts, seconds = (_listed(getattr(body, name)) for name in given[0])
    for name, texts in zip(given[0], (firsts, seconds), strict=True):
        check_count(texts, name, most)
    if len(firsts) not in (1, len(seconds)):
        raise Problem(
            Reason.INVALID,
            f"`{given[0][0]}` must hold 1 text, or as many as `{given[0][1]}`, {len(seconds)}: not "
            f"{len(firsts)}",
            given[0][0],
        )
    firsts = firsts * len(seconds) if len(firsts) == 1 else firsts
    return list(zip(firsts, seconds, strict=True)), given[0][1]


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _limit(model: ServedReranker, asked: int | None) -> int:
    """Tokens per pair; -1 stands for the model's limit, as None does.

    Raises: Problem: no room for a token, or more than the model's.
    """
    if asked is None or asked == -1:
        return model.max_length
    if not model.shortest <= asked <= model.max_length:
        raise Problem(
            Reason.INVALID,
            f"`truncate_prompt_tokens` must be -1, or {model.shortest} to {model.max_length}, not "
            f"{asked}",
            "truncate_prompt_tokens",
        )
    return asked
