"""TEI's routes that show the tokenizer: POST /tokenize and /decode."""

from collections.abc import Callable, Sequence

import msgspec
import orjson

from nomicbert.errors import TextError
from nomicbert.runtime.inputs import check_text
from nomicbert.serve.dialects.fields import as_prompt
from nomicbert.serve.http.answers import Answer
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.service import Service
from nomicbert.text.tokenizer import Tokenizer

# Bytes of a token in the answer, about. A text may have as many tokens as characters.
TOKEN_BYTES = 60


class TokenizeRequest(msgspec.Struct):
    """The body of POST /tokenize."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeRequest(msgspec.Struct):
    """The body of POST /decode."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None


async def tokenize(service: Service, exchange: Exchange) -> Answer:
    """POST /tokenize: id, text and place of every token of each whole text."""
    model = service.models[0]
    body = decode(await exchange.json(service.settings.payload_limit), TokenizeRequest)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not texts:
        raise Problem(Reason.EMPTY, "`inputs` cannot be empty", "inputs")
    prompt = as_prompt(model, body.prompt_name, "prompt_name")
    framed = body.add_special_tokens is not False
    size = TOKEN_BYTES * sum(len(prompt) + len(text) for text in texts)
    if size > service.settings.max_response_bytes:
        raise Problem(
            Reason.ANSWER_SIZE,
            f"the answer may have {size:,} bytes, more than "
            f"{service.settings.max_response_bytes:,} (--max-response-bytes): send less text",
            "inputs",
        )
    whole = [prompt + text for text in texts]
    return await _in_pool(
        service, exchange, size // TOKEN_BYTES, lambda: shown(model.tokenizer, whole, framed)
    )


async def decode_ids(service: Service, exchange: Exchange) -> Answer:
    """POST /decode: the text of token ids."""
    model = service.models[0]
    body = decode(await exchange.json(service.settings.payload_limit), DecodeRequest)
    lists = [item for item in body.ids if isinstance(item, list)]
    if not body.ids:
        raise Problem(Reason.EMPTY, "`ids` cannot be empty", "ids")
    if not lists:
        lists = [[item for item in body.ids if isinstance(item, int)]]
    elif len(lists) < len(body.ids):
        raise Problem(Reason.INVALID, "`ids` must hold ids only, or lists of ids only", "ids")
    most = model.encoder.config.vocab_size
    if not all(0 <= token < most for ids in lists for token in ids):
        raise Problem(Reason.INVALID, f"`ids` must be 0 to {most - 1}", "ids")
    skip = body.skip_special_tokens is not False
    rust = model.tokenizer.rust
    return await _in_pool(
        service, exchange, sum(map(len, lists)), lambda: [rust.decode(ids, skip) for ids in lists]
    )


async def _in_pool(
    service: Service, exchange: Exchange, tokens: int, work: Callable[[], object]
) -> Answer:
    """Work of the tokenizer as an answer, under the limits of other requests."""
    seconds = service.seconds(exchange)
    with await service.enter(tokens):
        content = await exchange.wait(service.in_pool(lambda: orjson.dumps(work())), seconds)
    return Answer([content])


def shown(tokenizer: Tokenizer, texts: Sequence[str], framed: bool) -> list[list[object]]:
    """The tokens of each text as TEI writes them.

    Raises: Problem: a text is not valid Unicode.
    """
    found = []
    for index, text in enumerate(texts):
        try:
            check_text(index, text)
        except TextError as error:
            raise Problem(Reason.INVALID, f"`inputs`[{index}] {error.problem}", "inputs") from error
        encoded = tokenizer.rust.encode(text, add_special_tokens=framed)
        tokens: list[object] = []
        for token, piece, place, special in zip(
            encoded.ids, encoded.tokens, encoded.offsets, encoded.special_tokens_mask, strict=True
        ):
            start, stop = (None, None) if special else place
            tokens.append(
                {
                    "id": token,
                    "text": piece if special else text[slice(*place)],
                    "special": bool(special),
                    "start": start,
                    "stop": stop,
                }
            )
        found.append(tokens)
    return found
