"""Tokenizers of every configuration that a tokenizer.json may have, including unusual ones.

CUT: texts may be cut before tokenising. WHOLE: they may not, each for a different reason.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.support.vocabularies import HANZI, chinese_wordpiece, unigram, wordpiece

Build = Callable[[], Tokenizer]
LATIN = {ord(character): f"<{i}>" for i, character in enumerate(HANZI)}
COMMON = HANZI[:8]  # the Chinese characters of the long pieces
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
METASPACE = pre_tokenizers.Metaspace()


def _spaces_to(content: str) -> normalizers.Replace:
    return normalizers.Replace(Regex(" {2,}"), content)


def rich_unigram(
    *steps: normalizers.Normalizer, split: Any = METASPACE, byte_fallback: bool = False
) -> Tokenizer:
    """Many competing pieces of up to six Chinese characters, some followed by punctuation."""
    base = unigram()
    pieces = [(piece, score) for piece, score in json.loads(base.to_str())["model"]["vocab"]]
    found = {piece: score for piece, score in pieces if not piece.startswith("<unused")}
    rng = random.Random(5)
    for size in (2, 2, 3, 3, 4, 5, 6, 6) * 9:
        piece = "".join(rng.choices(COMMON, k=size)) + rng.choice(["", "", "，"])
        found.setdefault(piece, -6.0 * len(piece) * rng.uniform(0.5, 0.95))
    if byte_fallback:
        found |= {f"<0x{byte:02X}>": -20.0 for byte in range(256)}
    tokenizer = Tokenizer(models.Unigram([*found.items()], unk_id=3, byte_fallback=byte_fallback))
    if steps:
        tokenizer.normalizer = normalizers.Sequence([*steps])
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = base.post_processor
    return tokenizer


def tight_unigram() -> Tokenizer:
    """The longest piece has six Chinese characters, next to a punctuation mark.

    So a cut within seven needs every position inside: a piece of the text ends at only one.
    """
    pieces = {"<unk>": 0.0, "▁": -1.0} | dict.fromkeys("王一二三四五六七，", -9.0)
    pieces |= {"王一": -2.0, "，一": -2.0, "一二三四五六，": -1.0, "，一二三四五六": -1.0}
    tokenizer = Tokenizer(models.Unigram([*pieces.items()], unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = METASPACE
    return tokenizer


def _latin_unigram() -> Tokenizer:
    """A Unigram model without Chinese characters."""
    raw = json.loads(unigram().to_str())
    vocab = raw["model"]["vocab"]
    raw["model"]["vocab"] = [[piece.translate(LATIN), score] for piece, score in vocab]
    return Tokenizer.from_str(json.dumps(raw))


def nmt_table() -> normalizers.Precompiled:
    """SentencePiece's own character table, as in XLM-R's tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    rule = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    proto = rule.serialized_model_proto()
    # after the rule's name: the tag of the table's field, its length as a varint, the table
    tag = proto.index(b"nmt_nfkc") + len(b"nmt_nfkc")
    end = next(i for i in range(tag + 1, len(proto)) if proto[i] < 0x80) + 1
    length = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(proto[tag + 1 : end]))
    return normalizers.Precompiled(proto[end : end + length])


def _bert(**settings: Any) -> Tokenizer:
    tokenizer = chinese_wordpiece()
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    return tokenizer


def _english(**parts: Any) -> Tokenizer:
    tokenizer = wordpiece()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def _with(build: Build, token: AddedToken) -> Tokenizer:
    tokenizer = build()
    tokenizer.add_tokens([token])
    return tokenizer


def _each_with(*tokens: AddedToken) -> dict[str, Build]:
    return {
        f"{kind} with {token.content!r}": functools.partial(_with, build, token)
        for kind, build in MAIN.items()
        for token in tokens
    }


n = normalizers
MAIN: dict[str, Build] = {
    "english": wordpiece,
    "chinese": chinese_wordpiece,
    "unigram": unigram,
}
CUT: dict[str, Build] = {
    **MAIN,
    "bert, Chinese in words": lambda: _bert(handle_chinese_chars=False),
    "bert, cased": lambda: _bert(lowercase=False, strip_accents=False, clean_text=False),
    "metaspace, wordpiece": lambda: _english(normalizer=n.NFKC(), pre_tokenizer=METASPACE),
    "nmt": lambda: rich_unigram(n.Nmt(), n.NFKC(), _spaces_to(" ")),
    "nmt, words": lambda: rich_unigram(n.Nmt(), n.NFKC(), _spaces_to(" "), split=WORDS),
    "prepended once": lambda: rich_unigram(
        n.NFKC(), split=pre_tokenizers.Metaspace(prepend_scheme="first")
    ),
    "never prepended": lambda: rich_unigram(
        n.NFC(), split=pre_tokenizers.Metaspace(prepend_scheme="never")
    ),
    "no normalizer": rich_unigram,
    "strip": lambda: rich_unigram(n.NFKC(), n.Strip(), _spaces_to("▁")),
    "strip, words": lambda: rich_unigram(n.NFKC(), n.Strip(), _spaces_to("▁"), split=WORDS),
    "no accents": lambda: rich_unigram(n.NFKD(), n.StripAccents(), n.Lowercase(), _spaces_to(" ")),
    "no Chinese": _latin_unigram,
    "bytes": lambda: rich_unigram(n.NFC(), _spaces_to(" "), byte_fallback=True),
    "table": lambda: rich_unigram(nmt_table(), split=WORDS),
    "table, strip": lambda: rich_unigram(nmt_table(), n.Strip(left=False), _spaces_to("▁")),
    **_each_with(
        AddedToken("@x@", lstrip=True, rstrip=True),
        AddedToken("fox", rstrip=True, normalized=False),
        AddedToken("FOX", normalized=True),
        AddedToken("fo", lstrip=True, special=True),
    ),
}
WHOLE: dict[str, Build] = {
    "no pre-tokenizer": lambda: rich_unigram(n.NFKC(), split=None),
    "other pre-tokenizer": lambda: rich_unigram(n.NFKC(), split=pre_tokenizers.Punctuation()),
    "words joined": lambda: rich_unigram(split=pre_tokenizers.Metaspace(split=False)),
    "other normalizer": lambda: rich_unigram(n.Prepend("x")),
    "characters replaced": lambda: rich_unigram(n.NFKC(), n.Replace("a", "b")),
    "spaces joined": lambda: rich_unigram(_spaces_to("▁"), split=pre_tokenizers.Metaspace("_")),
    "bert, otherwise split": lambda: _english(pre_tokenizer=pre_tokenizers.Whitespace()),
    "bert, not normalised": lambda: _english(normalizer=None),
    "byte-level": lambda: _english(normalizer=None, pre_tokenizer=pre_tokenizers.ByteLevel()),
    **_each_with(
        # may span a cut
        AddedToken("x fox", normalized=False),
        AddedToken("fox北", normalized=False),
        # depends on its neighbours
        AddedToken("dog", single_word=True, normalized=False),
    ),
    # contain a space or a Chinese character after normalising
    "added ▁": lambda: _with(unigram, AddedToken("x▁fox", normalized=True)),
    "added \u00b4": lambda: _with(unigram, AddedToken("x\u00b4fox", normalized=True)),
    "added \uf900": lambda: _with(unigram, AddedToken("x\uf900fox", normalized=True)),
}
