"""Read tokenizer.json: checked as JSON first, then given to the `tokenizers` library."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as RustTokenizer

from nomicbert.errors import TokenizerError
from nomicbert.loading.plain_files import read_file
from nomicbert.text.library_errors import guarded, unusable
from nomicbert.text.tokenizer_limits import check

# XLM-R's, the largest of the supported model types, has 17 MB and 800,000 values. A parsed value
# takes up to 64 bytes here, and as much in the library.
MOST_BYTES = 100_000_000
MOST_VALUES = 4_000_000
FEW_BYTES = 12_000_000

_SPACE, _KEY = r"[ \t\n\r]*", r'(?P<key>"(?:[^"\\]|\\.){0,100}")'
OPENING = re.compile(rf"{_SPACE}\{{{_SPACE}{_KEY}{_SPACE}:{_SPACE}")
NEXT = re.compile(rf"{_SPACE},{_SPACE}{_KEY}{_SPACE}:{_SPACE}")
CLOSING = re.compile(rf"{_SPACE}\}}{_SPACE}")


class TokenizerJson(NamedTuple):
    """A tokenizer as its file states it.

    Attributes:
        rust: the tokenizer.
        largest: id of its vocabulary, without added tokens; -1 for none.
        growth: characters that one character of a text may become.
    """

    rust: RustTokenizer
    largest: int
    growth: int


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read a file.

    Raises: TokenizerError: it is no file, too large, or damaged; or it would take time or memory
        without bound.
    """
    content = read_file(path, MOST_BYTES, TokenizerError)
    if len(content) > FEW_BYTES and sum(map(content.count, b",[{")) > MOST_VALUES:
        raise TokenizerError(f"{path} holds more than {MOST_VALUES:,} values")
    raw = guarded(path, _parse, content)
    growth, ids, added = check(path, raw), _ids(raw), raw.get("added_tokens") or ()
    del raw
    rust = guarded(path, RustTokenizer.from_buffer, content)
    # a copy for another process would have only one of two tokens
    if ids != list(range(len(ids))) and len(set(ids)) != len(ids):
        raise unusable(path, "two of its tokens have the same id")
    for token in added:  # transformers may go by the id that is stated
        text, found = token["content"], rust.token_to_id(token["content"])
        if found != token["id"] and text:
            problem = f"states the id {token['id']} for the added token {text!r:.80}"
            raise TokenizerError(f"{path} {problem}, which would get {found}")
    return TokenizerJson(rust, max(ids, default=-1), growth)


def _parse(content: bytes) -> dict[str, Any]:
    """The values of the outer object.

    A key that is repeated there is refused: the library builds the value that it states first, too.
    In the values, both take what is stated last.
    """
    text, decode = content.decode("utf-8"), json.JSONDecoder().raw_decode
    raw: dict[str, Any] = {}
    found = OPENING.match(text)
    while found:
        value, end = decode(text, found.end())
        key = json.loads(found["key"])
        if key in raw:
            raise ValueError(f"it states {key!r:.80} twice")
        raw[key] = value
        if CLOSING.fullmatch(text, end):
            return raw
        found = NEXT.match(text, end)
    raise ValueError("it is not a JSON object")


def _ids(raw: dict[str, Any]) -> list[Any]:
    model = raw.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return [*vocab.values()]
    return [*range(len(vocab) if isinstance(vocab, list) else 0)]
