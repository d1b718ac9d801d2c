"""tokenizer.json of an export: what Transformers.js needs in addition, and the same token ids."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from nomicbert import Embedder
from nomicbert.export import onnx
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import SENTENCES


def test_words_begin_with_a_space_in_version_2(tmp_path: Path) -> None:
    """The tokenizers library writes prepend_scheme only, which version 2 does not know."""
    source = build_checkpoint(tmp_path / "source", "nomic-v2-moe", num_hidden_layers=2)
    parts = json.loads((source / "tokenizer.json").read_text("utf-8"))["pre_tokenizer"]
    assert "add_prefix_space" not in parts["pretokenizers"][1]
    onnx(source, tmp_path / "exported")
    file = tmp_path / "exported" / "tokenizer.json"
    stored = json.loads(file.read_text("utf-8"))
    part = stored["pre_tokenizer"]["pretokenizers"][1]
    assert (part["type"], part["prepend_scheme"]) == ("Metaspace", "always")
    assert part["add_prefix_space"] is True
    found = [one.ids for one in Tokenizer.from_file(str(file)).encode_batch(list(SENTENCES))]
    assert found == Embedder(source).tokenizer.encode(list(SENTENCES), 10_000)[0]
