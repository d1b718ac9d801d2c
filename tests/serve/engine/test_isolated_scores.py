"""Rerankers and classifiers in worker processes: answers do not depend on --isolate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nomicbert.serve.engine import isolated
from nomicbert.serve.engine.keeper import Keeper
from nomicbert.serve.engine.workers import Workers
from tests.support import scoring
from tests.support.sameness import HAS_ONEDNN
from tests.support.scoring import DOCUMENTS, EMBEDDER, QUERY, RERANKERS
from tests.support.serving import InThread, in_thread, wait_until

REQUESTS: list[tuple[str, Any]] = [
    *(
        ("/v1/rerank", {"model": name, "query": QUERY, "documents": DOCUMENTS, "top_n": 5})
        for name in RERANKERS
    ),
    ("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}),
    ("/predict", {"inputs": [[QUERY, text] for text in DOCUMENTS]}),
    ("/predict", {"inputs": "a text alone"}),
    *(  # with the checkpoint's own activation
        ("/score", {"model": name, "text_1": QUERY, "text_2": DOCUMENTS[:3]}) for name in RERANKERS
    ),
    ("/v2/embed", {"model": EMBEDDER, "texts": DOCUMENTS[:3], "embedding_types": ["int8"]}),
    ("/embed", {"inputs": DOCUMENTS[:3], "on_long": "chunk"}),
    ("/info", None),
    ("/v1/models", None),
    ("/api/ps", None),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[InThread, InThread]]:
    folders = scoring.build(tmp_path_factory.mktemp("isolated")).values()
    settings: dict[str, Any] = {"threads": 1, "max_length": scoring.LIMIT}
    with in_thread(*folders, **settings) as plain:
        with in_thread(*folders, **settings, isolate=True) as isolated:
            yield plain, isolated


def answer(server: InThread, path: str, body: Any) -> Any:
    reply = server.call(path, body)
    assert reply.status == 200, reply.body
    found = reply.json
    if isinstance(found, dict):  # these differ between any two requests, or servers
        found.pop("id", None)
        for model in found.get("models", ()):
            model.pop("expires_at", None)
    return found


def compare(servers: tuple[InThread, InThread]) -> None:
    plain, isolated = servers
    for path, body in REQUESTS:
        assert answer(isolated, path, body) == answer(plain, path, body), (path, body)


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN the bits are equal up to rounding")
def test_answers_are_the_same(servers: tuple[InThread, InThread]) -> None:
    compare(servers)
    plain, isolated = servers
    for name in ("nomicbert_model_info", "nomicbert_texts_total"):
        assert isolated.metric(name) == plain.metric(name) > 0


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN the bits are equal up to rounding")
def test_answers_of_the_next_worker_are_the_same(servers: tuple[InThread, InThread]) -> None:
    loaded = servers[1].service.loaded
    assert loaded is not None
    assert loaded.workers is not None
    (keeper,) = loaded.workers.keepers
    first = keeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: keeper.is_ready and keeper.pid != first, 180)
    compare(servers)


def test_a_damaged_reranker_is_refused(tmp_path: Path) -> None:
    folder = scoring.build(tmp_path)[scoring.ONE]
    (folder / "model.safetensors").write_bytes(b"damaged")
    with (
        pytest.raises(Exception, match=r"model\.safetensors"),
        in_thread(folder, isolate=True, threads=1),
    ):
        pass


def test_a_prompt_that_no_model_uses_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keepers: list[Keeper] = []

    class Seen(Workers):
        def __init__(self, own: Sequence[Keeper], changed: threading.Condition) -> None:
            super().__init__(own, changed)
            keepers.extend(own)

    monkeypatch.setattr(isolated, "Workers", Seen)
    folder = scoring.build(tmp_path)[scoring.ONE]
    with (
        pytest.raises(Exception, match="are for embedding models"),
        in_thread(folder, isolate=True, threads=1, default_prompt="a: "),
    ):
        pass
    (keeper,) = keepers
    try:
        assert keeper.pid is None
        assert not keeper._thread.is_alive()
    finally:
        keeper.close()
        keeper.stop(60)
