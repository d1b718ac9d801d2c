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
MOST_VALUES = 2_000_000
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


def read_tokenizer_json(path: Path, rows: int) -> TokenizerJson:
    """Read a file.

    Args:
        path: of the file.
        rows: of the word embedding; every id must be below.

    Raises: TokenizerError: it is no file, too large, or damaged; or it would take time or memory
        without bound.
    """
    content = read_file(path, MOST_BYTES, TokenizerError)
    if len(content) > FEW_BYTES and sum(map(content.count, b",[{")) > MOST_VALUES:
        raise TokenizerError(f"{path} holds more than {MOST_VALUES:,} values")
    raw = guarded(path, _parse, content)
    growth, largest = check(path, raw), _largest_id(path, raw)
    check_rows(path, largest, rows)
    added = raw.get("added_tokens") or ()
    del raw
    rust = guarded(path, RustTokenizer.from_buffer, content)
    for token in added:  # transformers may go by the id that is stated
        text, found = token["content"], rust.token_to_id(token["content"])
        if found != token["id"] and text:
            problem = f"states the id {token['id']} for the added token {text!r:.80}"
            raise TokenizerError(f"{path} {problem}, which would get {found}")
    return TokenizerJson(rust, largest, growth)


def check_rows(path: Path, largest: int, rows: int) -> None:
    """Refuse an id that the word embedding does not have.

    Raises: TokenizerError: `largest` is not below `rows`.
    """
    if largest >= rows:
        raise TokenizerError(
            f"{path} has ids up to {largest}, but the embedding has only {rows} rows"
        )


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


def _largest_id(path: Path, raw: dict[str, Any]) -> int:
    """The largest id of the vocabulary; what is no id is left to the library to refuse."""
    model = raw.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        return len(vocab) - 1
    ids = [*vocab.values()] if isinstance(vocab, dict) else []
    if ids == [*range(len(ids))]:
        return len(ids) - 1
    ids = [i for i in ids if isinstance(i, int)]
    if len(set(ids)) != len(ids):  # a copy for another process would have one of the two
        raise unusable(path, "two of its tokens have the same id")
    return max(ids, default=-1)
