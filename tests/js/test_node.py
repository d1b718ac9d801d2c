"""The scripts of examples/transformers_js in node: the vectors are those of `Embedder.encode`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert import CrossEncoder, Embedder
from nomicbert.text.corpus import read_passages
from nomicbert.user_warnings import TruncationWarning
from tests.support.exports import Exports, minilm
from tests.support.javascript import (
    EXAMPLE,
    LIBRARIES,
    cosines,
    encode,
    node,
    run_node,
    vectors_of,
)
from tests.support.vocabularies import SENTENCES

# Two runtimes that sum in different orders; measured: at most 5e-6.
BOUND = 1e-5
# Least cosine of q8 to float32: over 200 docstrings, measured 0.996; of the tiny model 0.994.
LEAST, LEAST_TINY = 0.99, 0.98
CARD = ["search_query: What is TSNE?", "search_query: Who is Laurens van der Maaten?"]
TEXTS = [*CARD, *SENTENCES]
each_library = pytest.mark.parametrize("library", LIBRARIES)


def largest(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@each_library
def test_the_snippet_of_the_card(library: str, exports: Exports, tmp_path: Path) -> None:
    found = vectors_of(library, "embed", exports.exported("nomic"), TEXTS, tmp_path, "--dim", "32")
    embedder = Embedder(exports.source("nomic"))
    assert largest(found["pooled"], encode(embedder, TEXTS)) <= BOUND
    wanted = encode(embedder, TEXTS, matryoshka_dim=32)
    assert largest(found["vectors"], wanted) <= BOUND
    options = ("--dim", "32", "--dtype", "q8")
    small = vectors_of(library, "embed", exports.exported("nomic"), TEXTS, tmp_path, *options)
    assert LEAST_TINY <= cosines(small["vectors"], wanted).min() < 1 - 1e-6


@each_library
def test_long_texts_get_angles_of_their_own(library: str, exports: Exports, tmp_path: Path) -> None:
    """Dynamic NTK: one text beyond 2,048 tokens and a short one in the same batch."""
    texts = [CARD[0], "word " * 3000]
    model, embedder = exports.exported("ntk"), Embedder(exports.source("ntk"))
    assert embedder.model.config.rotary_scaling_factor == 2
    found = vectors_of(library, "embed", model, texts, tmp_path, "--dim", "32")
    wanted = encode(embedder, texts)
    assert largest(found["pooled"], wanted) <= BOUND
    assert largest(found["vectors"], encode(embedder, texts, matryoshka_dim=32)) <= BOUND
    plain = encode(exports.source("nomic"), texts)
    assert largest(plain[:1], wanted[:1]) <= BOUND
    assert largest(plain[1:], wanted[1:]) > 100 * BOUND


@each_library
@pytest.mark.parametrize("name", ["nomic", "conan", "short", "moe"])
def test_own_vectors(name: str, library: str, exports: Exports, tmp_path: Path) -> None:
    """Pooling, Dense and L2 as the checkpoint has them."""
    found = vectors_of(library, "own_vectors", exports.exported(name), TEXTS, tmp_path)
    wanted = encode(exports.source(name), TEXTS)
    assert wanted.shape[1] == {"conan": 112, "short": 64}.get(name, 64)
    assert largest(found["vectors"], wanted) <= BOUND


@each_library
def test_a_long_text_keeps_its_last_token(library: str, exports: Exports, tmp_path: Path) -> None:
    """The pipeline of Transformers.js cuts [SEP] off; own_vectors.mjs does not."""
    texts = ["what is deep learning? " * 100]
    model, embedder = exports.exported("short"), Embedder(exports.source("short"))
    limit = embedder.max_seq_length
    assert limit == 256
    wanted = encode(embedder, texts)
    own = vectors_of(library, "own_vectors", model, texts, tmp_path)["vectors"]
    assert largest(own, wanted) <= BOUND
    cut = vectors_of(library, "embed", model, texts, tmp_path, "--dim", "64")["pooled"]
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    assert largest(cut, wanted) > 100 * BOUND
    ids = embedder.tokenizer.encode(texts, 10_000)[0][0][:limit]
    without = embedder.embedding_model.encode_ids([ids]).detach().numpy()
    assert largest(cut, without) <= BOUND


@each_library
def test_real_weights(library: str, exports: Exports, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 on 200 docstrings, fp32 and q8."""
    texts = [passage.text for passage in read_passages(limit=200)]
    wanted = encode(minilm(), texts)
    model = exports.exported("minilm")
    found = vectors_of(library, "own_vectors", model, texts, tmp_path)["vectors"]
    assert largest(found, wanted) <= BOUND
    small = vectors_of(library, "own_vectors", model, texts, tmp_path, "--dtype", "q8")["vectors"]
    assert LEAST <= cosines(small, wanted).min() < 1 - 1e-4


def test_scores_of_a_reranker(exports: Exports, tmp_path: Path) -> None:
    texts = [*SENTENCES, "the quick brown fox " * 40]
    model = CrossEncoder(exports.source("reranker"))
    assert model.max_length == 96
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        pairs = [(CARD[0], text) for text in texts]
        wanted = np.asarray(model.predict(pairs, activation_fn=torch.nn.Identity()))
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts), "utf-8")
    script, exported = EXAMPLE / "rerank.mjs", str(exports.exported("reranker"))
    arguments = (exported, "--question", CARD[0], "--texts", str(file))
    found = np.array(node(script, *arguments, "--json")["logits"], np.float32)
    assert largest(found[:, 0], wanted) <= BOUND
    printed = run_node(script, *arguments).stdout.splitlines()
    assert [line[10:] for line in printed] == [texts[at] for at in np.argsort(-wanted)]
    done = run_node(script, exported)
    assert done.returncode == 1
    assert "rerank.mjs needs --question TEXT" in done.stderr


def test_what_is_printed(exports: Exports) -> None:
    done = run_node(EXAMPLE / "own_vectors.mjs", str(exports.exported("nomic")))
    first, *rows = done.stdout.splitlines()
    assert first == "2 vectors of 64 values; cosines:"
    a, b = encode(exports.source("nomic"), CARD).astype(np.float64)
    cosine = f"{a @ b / np.linalg.norm(a) / np.linalg.norm(b):.3f}"
    assert [row.split()[:2] for row in rows] == [["1.000", cosine], [cosine, "1.000"]]


MISTAKES = {
    "no model": ([], "node embed.mjs MODEL"),
    "no folder": (["missing"], "nomicbert export MODEL -o missing --dtype fp32"),
    "no such dtype": (["MODEL", "--dtype", "q4"], "--dtype is fp32, fp16, q8, not q4"),
    "not exported": (["MODEL", "--dtype", "fp16"], "model_fp16.onnx is missing: nomicbert export"),
    "too wide": (["MODEL", "--dim", "65"], "--dim is at most 64 for this model, not 65"),
    "no width": (["MODEL", "--dim", "x"], "--dim must be 1 or more, not x"),
    "unknown option": (["MODEL", "--size", "3"], "Unknown option '--size'"),
    "not a list": (["MODEL", "--texts", "TEXTS"], "texts.json is not a JSON list of strings"),
    "no JSON": (["MODEL", "--texts", "package.mjs"], "package.mjs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, exports: Exports, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps({"a": 1}), "utf-8")
    given, message = MISTAKES[mistake]
    stand_ins = {"MODEL": str(exports.exported("nomic")), "TEXTS": str(tmp_path / "texts.json")}
    done = run_node(EXAMPLE / "embed.mjs", *(stand_ins.get(word, word) for word in given))
    assert done.returncode == 1
    assert message in done.stderr
    assert "    at " not in done.stderr  # no stack trace
    assert not done.stdout
