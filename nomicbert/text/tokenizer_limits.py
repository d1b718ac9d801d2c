"""Bounds on what tokenizer.json makes the `tokenizers` library do.

The library believes the file. It runs 100,000 normalizers, doubles a text 60 times, and reserves
the memory that a table claims to need; much of that while it reads the file, because it normalises
the added tokens there. So everything here is computed from the JSON, before the library has it. No
bound is near a value of a tokenizer that is in use.

Source: the code of `tokenizers` 0.23.
"""

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from nomicbert.errors import TokenizerError
from nomicbert.text.regex_limits import fault, plain

# Normalizers and pre-tokenizers together; in use are up to 10.
MOST_PARTS = 100
# Characters that one character of a text may become; SentencePiece's steps for ALBERT: 36. Not
# counted are the up to 18 that it has in Unicode's own normal forms.
MOST_GROWTH = 200
LONGEST_FRAME = 20_000
# WordPiece takes time with the third power of it, and n bytes for each character for n bytes of a
# prefix.
LONGEST_WORD, LONGEST_PREFIX = 1_000, 100
# A Unigram model keeps about 200 bytes for each byte of its pieces (XLM-R: 2 million), and frees
# the bytes of a piece recursively.
LONGEST_PIECE, MOST_PIECE_BYTES = 1_000, 4_000_000
# A larger vocabulary may have as many for each piece, which has a row of the embedding too.
PIECE_BYTES = 16
MOST_TOKENS, LONGEST_TOKEN, MOST_NORMALISED = 50_000, 1_000, 20_000_000

# Repeated, these have no further effect.
UNICODE = {"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip"}
# BertNormalizer puts spaces around ideographs; ByteLevel has a character for each of up to 4 bytes,
# and a space before; Metaspace puts one before.
GROWTH = {"BertNormalizer": 3, "ByteLevel": 5, "Metaspace": 2}


def check(path: Path, raw: Mapping[str, Any]) -> int:
    """Refuse what takes memory or time without bound.

    Args:
        path: of tokenizer.json.
        raw: its content.

    Returns: the characters that one character of a text may become.
    Raises: TokenizerError: a bound is exceeded.
    """
    normalizers = list(_parts(path, raw, "normalizer", "normalizers"))
    splitters = list(_parts(path, raw, "pre_tokenizer", "pretokenizers"))
    for _ in _parts(path, raw, "post_processor", "processors"):
        pass
    if len(repr(raw.get("post_processor"))) > LONGEST_FRAME:
        raise TokenizerError(f"{path} puts too much around a text: see post_processor")
    growth = _growth(path, normalizers) * _growth(path, splitters)
    if growth > MOST_GROWTH:
        raise TokenizerError(
            f"{path}: the normalizers and pre-tokenizers may make more than {MOST_GROWTH} "
            "characters of one"
        )
    model, added = raw.get("model"), raw.get("added_tokens")
    if isinstance(model, dict):
        _check_model(path, model)
    if isinstance(added, list):
        texts = (token.get("content") for token in added if isinstance(token, dict))
        check_tokens(path, [text for text in texts if isinstance(text, str)], growth)
    return growth


def check_tokens(path: Path, texts: Collection[str], growth: int) -> None:
    """Refuse too many or too long added tokens.

    Args:
        path: for the error message.
        texts: of the tokens.
        growth: of a text, by normalizers.

    Raises: TokenizerError: a bound is exceeded.
    """
    longest = max(map(len, texts), default=0)
    if len(texts) > MOST_TOKENS or longest > LONGEST_TOKEN:
        raise TokenizerError(
            f"{path} adds {len(texts):,} tokens of up to {longest:,} characters; supported are "
            f"{MOST_TOKENS:,} of up to {LONGEST_TOKEN:,}"
        )
    if (size := sum(map(len, texts)) * growth) > MOST_NORMALISED:
        raise TokenizerError(
            f"{path} adds tokens that may have {size:,} characters once they are normalised, more "
            f"than {MOST_NORMALISED:,}"
        )


def _parts(path: Path, raw: Mapping[str, Any], key: str, inner: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a sequence, and of sequences in it, in their order."""
    pending, seen = [raw.get(key)], 0
    if pending == [None]:
        return
    while pending:
        part = pending.pop()
        # the library would read a list as the values of an object
        if not isinstance(part, dict):
            raise TokenizerError(f"{path}: a {key} must be an object, not {part!r:.80}")
        seen += 1
        steps = part.get(inner)
        pending += reversed(steps) if isinstance(steps, list) else []
        if seen + len(pending) > MOST_PARTS:
            raise TokenizerError(f"{path}: {key} has more than {MOST_PARTS} parts")
        if part.get("type") != "Sequence":
            yield part


def _growth(path: Path, parts: Iterable[Mapping[str, Any]]) -> int:
    growth, inserted = 1, ""
    for part in parts:
        kind = str(part.get("type"))
        _check_pattern(path, part.get("pattern"))
        # without a type that it knows, the library looks at the keys
        if "precompiled_charsmap" in part:
            texts = _table_texts(path, part["precompiled_charsmap"])
            growth *= max(1, *map(len, texts))
            inserted += "".join(texts)
        if "prepend" in part:
            growth *= 1 + len(str(part["prepend"]))
            inserted += str(part["prepend"])
        if "content" in part:
            growth *= _replacement(part.get("pattern"), str(part["content"]))
            inserted += str(part["content"])
        if kind in UNICODE:
            growth *= max([1, *(len(normalize("NFKD", one.lower())) for one in set(inserted))])
            inserted = ""
        growth *= GROWTH.get(kind, 1)
    return growth


def _replacement(pattern: Any, content: str) -> int:
    """Characters for one that Replace finds, or for none if it may find an empty text."""
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(text, str) and text:
        return max(1, -(-len(content) // len(text)))
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(regex, str) and regex and not re.search(r"[*?|^$(\\]|\{[0,]", plain(regex)):
        return max(1, len(content))
    return 1 + len(content)


def _check_pattern(path: Path, pattern: Any) -> None:
    for kind, text in pattern.items() if isinstance(pattern, dict) else ():
        if not isinstance(text, str):
            continue
        if problem := fault(text if kind == "Regex" else re.escape(text)):
            raise TokenizerError(f"{path}: the pattern {text!r:.80} {problem}")


def _table_texts(path: Path, table: Any) -> list[str]:
    """The texts in a compiled table of characters (SentencePiece)."""
    try:
        content = base64.b64decode(table, validate=True)
        size = int.from_bytes(content[:4], "little")
        if not 4 <= size <= len(content) - 4:
            raise ValueError(f"its trie of {size:,} bytes is not in its {len(content):,} bytes")
        return content[4 + size :].decode("utf-8").split("\0")
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: precompiled_charsmap is damaged: {error}") from error


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(text := model.get(key), str) and len(text) > LONGEST_PREFIX:
            raise TokenizerError(f"{path}: {key} has {len(text):,} characters")
    word = model.get("max_input_chars_per_word")
    if isinstance(word, int) and word > LONGEST_WORD:
        raise TokenizerError(
            f"{path}: max_input_chars_per_word = {word} is not supported, at most {LONGEST_WORD} is"
        )
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        entries = (entry[0] for entry in vocab if isinstance(entry, list) and entry)
        pieces = [piece for piece in entries if isinstance(piece, str)]
        longest = max(map(len, pieces), default=0)
        size = len("".join(pieces).encode("utf-8", "replace"))
        most = max(MOST_PIECE_BYTES, PIECE_BYTES * len(pieces))
        if longest > LONGEST_PIECE or size > most:
            raise TokenizerError(
                f"{path}: its {len(pieces):,} pieces have {size:,} bytes, and up to {longest:,} "
                f"characters each; supported are {most:,} and {LONGEST_PIECE:,}"
            )
