"""Read tokenizer.json: checked as JSON first, then given to the `tokenizers` library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as RustTokenizer

from nomicbert.errors import TokenizerError
from nomicbert.loading.plain_files import check_file
from nomicbert.text.library_errors import guarded, unusable
from nomicbert.text.tokenizer_limits import check

# XLM-R's, the largest of the supported model types, has 17 MB and 800,000 values. A parsed value
# takes up to 64 bytes here, and as much in the library.
MOST_BYTES = 100_000_000
MOST_VALUES = 4_000_000
FEW_BYTES = 12_000_000


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
    check_file(path, MOST_BYTES, TokenizerError)
    content = guarded(path, path.read_bytes)
    if len(content) > FEW_BYTES and sum(map(content.count, b",[{")) > MOST_VALUES:
        raise TokenizerError(f"{path} holds more than {MOST_VALUES:,} values")
    raw = guarded(path, _parse, content)
    growth = check(path, raw)
    ids = _ids(raw)
    del raw
    rust = guarded(path, RustTokenizer.from_buffer, content)
    if len(set(ids)) != len(ids):  # a copy for another process would have one of the two
        raise unusable(path, "two of its tokens have the same id")
    return TokenizerJson(rust, max(ids, default=-1), growth)


def _parse(content: bytes) -> dict[str, Any]:
    raw = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    if not isinstance(raw, dict):
        raise TypeError("it must hold a JSON object")
    return raw


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key: the library may take another value than is checked here."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"it states {twice!r:.80} twice")
    return found


def _ids(raw: dict[str, Any]) -> Any:
    model = raw.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return vocab.values()
    return range(len(vocab) if isinstance(vocab, list) else 0)
