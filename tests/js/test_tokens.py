"""Token ids of both versions of Transformers.js are ours, except for the texts listed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nomicbert import Embedder
from tests.support.exports import Exports
from tests.support.javascript import LIBRARIES, TESTS, node

PACKAGES = {"huggingface": "@huggingface/transformers", "xenova": "@xenova/transformers"}
TEXTS: dict[str, str] = json.loads((TESTS / "texts.json").read_text("utf-8"))
# Texts whose ids differ, by model and library. All are differences of Transformers.js from the
# tokenizers library: JavaScript's toLowerCase turns a word's last capital sigma into a final one;
# version 2 keeps fewer combining marks than Unicode has; version 4 takes the zero-width joiner
# for a space, which sentencepiece's table of today does not.
DIFFERENT = {
    ("minilm", "huggingface"): {"greek"},
    ("minilm", "xenova"): {"greek", "hindi"},
    ("moe", "huggingface"): {"joiner", "flag"},
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["minilm", "conan", "moe"])
def test_token_ids(name: str, library: str, exports: Exports, tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    texts = list(TEXTS.values())
    file.write_text(json.dumps(texts), "utf-8")
    model = exports.exported(name)
    arguments = (str(LIBRARIES[library]), PACKAGES[library], str(model), str(file))
    theirs = node(TESTS / "tokens.mjs", *arguments)["ids"]
    ours = Embedder(exports.source(name)).tokenizer.encode(texts, 10_000)[0]
    rows = zip(TEXTS, ours, theirs, strict=True)
    different = {text for text, a, b in rows if [int(token) for token in a] != b}
    assert different == DIFFERENT.get((name, library), set())
    assert len({tuple(row) for row in theirs}) > len(texts) // 2
