"""Run client libraries against a server, and say what their vectors must be.

The libraries live in environments of their own (tests/clients/requirements.txt, more.txt); this
process only starts `tests/clients/call.py` with their interpreter and reads what it stored.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import CrossEncoder, Embedder
from nomicbert.user_warnings import PromptWarning, TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.sameness import HAS_ONEDNN, nearly_equal

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "tests" / "clients"
TEXTS: dict[str, list[str]] = json.loads((CLIENTS / "texts.json").read_text("utf-8"))

LAST_PART = "nomic-embed-text-v1.5"
REPOSITORY = f"nomic-ai/{LAST_PART}"
RERANKER = "bge-reranker-base"
LIMIT = 128  # tokens of the tiny checkpoint; TEXTS["long"] has more, the others fewer

WIDTH = 128  # of the tiny checkpoint

UNIT = {"normalize_embeddings": True}
FULL = {"matryoshka_dim": WIDTH}  # layer_norm and L2, nothing cut off
D64 = {"matryoshka_dim": 64}
D32 = {"matryoshka_dim": 32}


@dataclass(frozen=True)
class Call:
    """What a client's call must return: `Embedder.encode(texts, **keywords)`, to the bit.

    Attributes:
        texts: a key of texts.json.
        keywords: of `encode`.
        count: the first texts only; default all.
        repeat: the texts this many times.
    """

    texts: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    count: int | None = None
    repeat: int = 1

    def wanted(self, embedder: Embedder) -> np.ndarray:
        """float32 (n, columns); the levels and bytes of other precisions as float32, too."""
        texts = TEXTS[self.texts][: self.count] * self.repeat
        return encode(embedder, texts, **self.keywords).astype(np.float32)


@dataclass(frozen=True)
class Ranked:
    """What a client's re-ranking must return: `CrossEncoder.predict`, to the bit, best first.

    The query is the first of the few texts, the documents are the many.

    Attributes:
        top: how many results; default all.
        keywords: of `predict`.
    """

    top: int | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def wanted(self, reranker: CrossEncoder) -> tuple[list[int], np.ndarray]:
        """Indexes of the documents, best first, and float32 (1, n) scores."""
        pairs = [(TEXTS["few"][0], document) for document in TEXTS["many"]]
        scores = np.asarray(reranker.predict(pairs, **self.keywords))
        order = np.argsort(-scores, kind="stable")[: self.top]
        return order.tolist(), scores[order][None]


def tiny_nomic(folder: Path) -> Path:
    """A tiny nomic-embed-text-v1.5 in a folder of the repository's name."""
    where = build_checkpoint(folder / REPOSITORY, "nomic-v1.5", hidden_size=WIDTH)
    limits = {"max_seq_length": LIMIT, "do_lower_case": False}
    (where / "sentence_bert_config.json").write_text(json.dumps(limits), "utf-8")
    return where


def tiny_reranker(folder: Path) -> Path:
    """A tiny re-ranker in a folder of the name that the calls use."""
    return build_reranker(folder / RERANKER)


def encode(embedder: Embedder, texts: Sequence[str], **keywords: Any) -> np.ndarray:
    """`embedder.encode`, float32 (n, dim); cuts and missing prompts are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        warnings.simplefilter("ignore", PromptWarning)
        return np.asarray(embedder.encode(list(texts), **keywords))


def interpreter(variable: str, default: str, target: str) -> str:
    """The Python of an environment with client libraries; fails the test if there is none."""
    python = Path(os.environ.get(variable) or ROOT / default)
    if not python.is_file():
        pytest.fail(
            f"{python} does not exist: `{target}` builds the environment with the client "
            f"libraries; {variable} names another interpreter",
            pytrace=False,
        )
    return str(python)


@dataclass(frozen=True)
class Answers:
    """What a client's calls returned: facts by name of the call."""

    calls: dict[str, dict[str, Any]]

    def vectors(self, name: str) -> np.ndarray:
        """float32 (n, dim), exactly as the client returned them."""
        call = self.calls[name]
        data = base64.b64decode(call["vectors"])
        return np.frombuffer(data, "<f4").reshape(call["shape"])

    def error(self, name: str) -> dict[str, Any]:
        """The error of a call that must fail."""
        assert name in self.calls, f"{name}: the call returned, and should have been refused"
        return self.calls[name]


def run_client(
    python: str, client: str, url: str, model: str, folder: Path, script: str = "call.py"
) -> Answers:
    """Make all calls of `tests/clients/calls/with_{client}.py` against the server at `url`.

    For JavaScript `python` is node and `script` js/call.mjs, next to its own with_{client}.mjs.
    """
    out = folder / f"{client}.json"
    command = [python, str(CLIENTS / script), client, url, model, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{client}:\n{done.stdout}\n{done.stderr}"
    return Answers(json.loads(out.read_text("utf-8")))


def check_vectors(
    answers: Answers, table: Mapping[str, Call], embedder: Embedder, others: Sequence[str] = ()
) -> None:
    """Compare every call that returned vectors with the table, to the bit.

    Args:
        answers: of one client.
        table: call -> what it must be equal to.
        embedder: the server's checkpoint, in this process.
        others: calls with vectors that the caller compares itself.
    Raises: AssertionError: lists all calls that differ, and calls missing on either side.
    """
    returned = {name for name, call in answers.calls.items() if "vectors" in call}
    assert returned - set(others) == set(table)
    wrong = []
    for name, call in table.items():
        got = answers.vectors(name)
        wanted = call.wanted(embedder)
        if got.shape != wanted.shape:
            wrong.append(f"{name}: shape {got.shape} instead of {wanted.shape}")
        elif not same_bits(got, wanted):
            rows = np.flatnonzero((_bits(got) != _bits(wanted)).any(axis=1)).tolist()
            wrong.append(f"{name}: rows {rows} differ by up to {np.abs(got - wanted).max():.1e}")
    assert not wrong, "\n".join(wrong)


def check_rankings(answers: Answers, table: Mapping[str, Ranked], reranker: CrossEncoder) -> None:
    """Compare every call that returned scores with the table: order, and scores to the bit.

    Raises: AssertionError: lists all calls that differ, and calls missing on either side.
    """
    assert {name for name, call in answers.calls.items() if "vectors" in call} == set(table)
    wrong = []
    for name, call in table.items():
        order, scores = call.wanted(reranker)
        if answers.calls[name]["order"] != order:
            wrong.append(f"{name}: documents {answers.calls[name]['order']} instead of {order}")
        elif not same_bits(answers.vectors(name), scores):
            wrong.append(f"{name}: scores {answers.vectors(name)} instead of {scores}")
    assert not wrong, "\n".join(wrong)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float32 arrays have the same shape and bits, signs of zeros included.

    Without oneDNN bits depend on the batch: there they may differ by a few roundings.
    """
    if not HAS_ONEDNN:
        return nearly_equal(a, b)
    return a.shape == b.shape and bool((_bits(a) == _bits(b)).all())


def _bits(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float32
    return np.ascontiguousarray(values).view(np.int32)
