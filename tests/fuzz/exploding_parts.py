"""Parts of a tokenizer.json that blow up: each small in the file, large or endless in use."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from typing import Any

Part = dict[str, Any]


def _replace(pattern: Part, content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _sequence(parts: list[Part], key: str) -> Part:
    return {"type": "Sequence", key: parts}


def _table(size: int, trie: bytes, strings: bytes) -> Part:
    table = struct.pack("<I", size) + trie + strings
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def _nested(part: Part, levels: int, key: str) -> Part:
    for _ in range(levels):
        part = _sequence([part], key)
    return part


def _random_table(rng: random.Random) -> Part:
    trie = rng.randbytes(4 * 300)
    return _table(
        len(trie), trie, rng.choice([b"a\0b\0", "中".encode(), b"\xff\xfe\0", b"a" * 10**5])
    )


NORMALIZERS: dict[str, Callable[[random.Random], Part]] = {
    "doubling": lambda rng: _sequence([_replace({"String": "a"}, "aa")] * 60, "normalizers"),
    "tenfold": lambda rng: _sequence([_replace({"Regex": "."}, "a" * 10)] * 9, "normalizers"),
    "empty matches": lambda rng: _sequence([_replace({"Regex": ""}, "ab")] * 40, "normalizers"),
    "many": lambda rng: _sequence([{"type": "NFC"}] * 100_000, "normalizers"),
    "prepends": lambda rng: _sequence(
        [{"type": "Prepend", "prepend": "x" * 100}] * 5_000, "normalizers"
    ),
    "one long": lambda rng: _replace({"String": " "}, "x" * 10**6),
    "bytes": lambda rng: _sequence([{"type": "ByteLevel"}] * 40, "normalizers"),
    "nested": lambda rng: _nested({"type": "NFC"}, rng.choice([50, 120, 300]), "normalizers"),
    "backtracking": lambda rng: _replace({"Regex": "(a+)+(b+)+$|(.*)*x"}, "y"),
    "bad regex": lambda rng: _replace({"Regex": "(((["}, "y"),
    "table too small": lambda rng: _table(rng.choice([2**31, 2**32 - 4, 10**9]), b"1234", b""),
    "table": _random_table,
    "table not base64": lambda rng: {"type": "Precompiled", "precompiled_charsmap": "!!"},
    "unknown": lambda rng: {"type": "Nothing"},
}
SPLITTERS: dict[str, Callable[[random.Random], Part]] = {
    "many": lambda rng: _sequence([{"type": "WhitespaceSplit"}] * 100_000, "pretokenizers"),
    "bytes": lambda rng: _sequence(
        [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}]
        * 40,
        "pretokenizers",
    ),
    "backtracking": lambda rng: {
        "type": "Split",
        "pattern": {"Regex": "(a+)+(b+)+$|(.*)*x"},
        "behavior": "Isolated",
        "invert": False,
    },
    "empty": lambda rng: {
        "type": "Split",
        "pattern": {"String": ""},
        "behavior": rng.choice(["Isolated", "Removed", "MergedWithNext"]),
        "invert": rng.random() < 0.5,
    },
    "marks": lambda rng: _sequence(
        [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]
        * rng.choice([30, 3_000]),
        "pretokenizers",
    ),
    "no mark": lambda rng: {
        "type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True,
    },
    "nothing left": lambda rng: {"type": "CharDelimiterSplit", "delimiter": "a"},
}  # fmt: skip


def _template(pieces: int) -> Part:
    body = [{"Sequence": {"id": "A", "type_id": 0}}] * pieces
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing", "single": body, "pair": [*body, other], "special_tokens": {},
    }  # fmt: skip


FRAMES: dict[str, Callable[[random.Random], Part]] = {
    "doubling": lambda rng: _sequence([_template(2)] * 40, "processors"),
    "long": lambda rng: _template(50_000),
    "nothing": lambda rng: _template(0),
    "unknown mark": lambda rng: {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    },
    "large ids": lambda rng: {
        "type": "BertProcessing", "sep": ["[SEP]", 2**32 - 1], "cls": ["[CLS]", 2**31],
    },
    "types": lambda rng: {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 2**31}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 9}}, {"Sequence": {"id": "B", "type_id": 7}}],
        "special_tokens": {},
    },
}  # fmt: skip


def _added(rng: random.Random) -> list[Part]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")

    def token(content: str, number: int) -> Part:
        return {"id": number, "content": content} | {f: rng.random() < 0.5 for f in flags}

    return rng.choice(
        [
            [token(f"new{i}", 1_000 + i) for i in range(20_000)],
            [token("x", 2**32 - 1)],
            [token("", 5)],
            [token(" ", 5), token("a" * 10**6, 6)],
            [token("the", 3), token("the", 9)],
            [token("\x00", 0)],
        ]
    )


def _model(model: Part, rng: random.Random) -> str:
    """Damage to the model that JSON alone does not know to be special."""
    kind = rng.choice(
        ["prefix", "limit", "unknown", "scores", "ids", "dropout", "fallback", "long"]
    )
    vocabulary = model.get("vocab")
    if kind == "prefix":
        model["continuing_subword_prefix"] = rng.choice(["", "x" * 10**6, "\x00", "##中"])
    elif kind == "limit":
        model["max_input_chars_per_word"] = rng.choice([0, 1, 2**32, 2**63])
    elif kind == "unknown":
        model["unk_token"], model["unk_id"] = rng.choice(["", "nowhere"]), rng.choice([10**9, 0])
    elif kind == "dropout":
        model["dropout"] = rng.choice([0.5, 1.0, 0.0, -1, 7])
    elif kind == "fallback":
        model["byte_fallback"] = not model.get("byte_fallback", False)
    elif kind == "long":
        return _longer(vocabulary, rng)
    elif isinstance(vocabulary, list):
        vocabulary[rng.randrange(len(vocabulary))][1] = rng.choice([1e308, -1e308, 0.0, 1e-300])
    elif isinstance(vocabulary, dict):
        number = rng.choice([2**32 - 1, 2**31, 10**6, 0, 1])
        vocabulary[rng.choice(list(vocabulary))] = number
    return kind


def _longer(vocabulary: Any, rng: random.Random) -> str:
    word = rng.choice(["a" * 10**6, "", " ", "\x00", "中" * 1_000])
    if isinstance(vocabulary, dict):
        vocabulary[word] = len(vocabulary)
    elif isinstance(vocabulary, list):
        vocabulary.append([word, -1.0])
    return f"a word of {len(word)} characters"


def explode(root: Any, rng: random.Random) -> str:
    """Put one such part into a parsed tokenizer.json; returns its name."""
    kinds = {"normalizer": NORMALIZERS, "pre_tokenizer": SPLITTERS, "post_processor": FRAMES}
    others = ["added_tokens", "model", "padding", "truncation"]
    place = rng.choice(["normalizer", *kinds, *others])
    if place in kinds:
        name = rng.choice(sorted(kinds[place]))
        root[place] = kinds[place][name](rng)
        return f"{place}: {name}"
    if place == "added_tokens":
        root[place] = [*root[place], *_added(rng)]
        return place
    if place == "padding":
        size = rng.choice([0, 512, 2**40])
        root[place] = {
            "strategy": {"Fixed": size}, "direction": "Right", "pad_to_multiple_of": rng.choice(
                [None, 0, 2**40]), "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
        }  # fmt: skip
        return f"padding: {size}"
    if place == "truncation":
        size = rng.choice([0, 1, 512, 2**40])
        root[place] = {
            "direction": rng.choice(["Left", "Right"]), "max_length": size,
            "strategy": "LongestFirst", "stride": rng.choice([0, 10**6]),
        }  # fmt: skip
        return f"truncation: {size}"
    return f"model: {_model(root['model'], rng)}"
