"""The cache of vectors: what it returns, what it keeps, and its memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert.serve.engine import cache as cache_module
from nomicbert.serve.engine.cache import ENTRY_BYTES, SLACK, Key, VectorCache, key_of
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import Group, Job
from nomicbert.serve.models import Loaded
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, make_engine, rows_of, run, same_rows, want
from tests.support.sameness import HAS_ONEDNN
from tests.support.serving import ROOT, in_thread
from tests.support.vocabularies import SENTENCES

PLAIN = Group(0)
# not [5, 6, 700_000], but equal to it in fewer bits, or in another order
OTHER_IDS = ([5, 6], [6, 5, 700_000], [5, 6, 0], [5, 6, 700_000 % 2**16], [5, 6, 96], [])
COST = ENTRY_BYTES + int(SLACK * (4 * 4 + 3 * 4))  # of `row` and `key`
# Fill a cache with 20,000 entries; print its own count of bytes and the process's.
MEASURE = """
import gc, torch
from nomicbert.serve.engine.cache import VectorCache, key_of
from nomicbert.serve.engine.jobs import Group
from nomicbert.vectors.pooling import Finish

rows = torch.randn(64, {dim})

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def fill(cache, count):
    for number in range(count):
        ids = [number, *range(500, {tokens} + 499)]
        cache.put(key_of(Group(0), Finish(normalize=True), ids), rows[number % 64])

fill(VectorCache(2**40), 500)
cache = VectorCache({limit})
before = resident()
fill(cache, 20_000)
print(cache.bytes, resident() - before, len(cache._rows))
"""


class SlowDict(OrderedDict[Key, bytes]):
    """Other threads run between its steps."""

    def __setitem__(self, key: Key, value: bytes) -> None:
        time.sleep(0)
        super().__setitem__(key, value)

    def popitem(self, last: bool = True) -> tuple[Key, bytes]:
        time.sleep(0)
        return super().popitem(last)


def key(number: int) -> Key:
    return key_of(PLAIN, Finish(), [number, 2, 3])


def row(number: float) -> torch.Tensor:
    return torch.full((4,), float(number))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("nomic"), "nomic-v1.5")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_models(folder)


def test_a_row_is_a_copy_both_ways() -> None:
    cache = VectorCache(1 << 20)
    given = torch.arange(8.0).reshape(2, 4)
    cache.put(key(1), given[1])
    given.zero_()
    found = cache.get(key(1))
    assert found is not None
    assert found.tolist() == [4, 5, 6, 7]
    found.zero_()
    again = cache.get(key(1))
    assert again is not None
    assert again.tolist() == [4, 5, 6, 7]
    assert (cache.hits, cache.misses) == (2, 0)
    assert cache.get(key(2)) is None
    assert (cache.hits, cache.misses) == (2, 1)


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = VectorCache(3 * COST)
    for number in range(3):
        cache.put(key(number), row(number))
    assert cache.bytes == 3 * COST
    assert cache.get(key(0)) is not None
    cache.put(key(0), row(9))  # the same vector, and as old as before
    cache.put(key(3), row(3))
    assert cache.bytes == 3 * COST
    assert cache.get(key(1)) is None
    kept = [cache.get(key(number)) for number in (0, 2, 3)]
    assert [found is not None and found[0].item() for found in kept] == [0, 2, 3]
    cache.put(key(4), torch.zeros(10_000))  # larger than all of it
    assert cache.get(key(4)) is None
    assert cache.bytes == 3 * COST


def test_without_room_nothing_is_kept() -> None:
    cache = VectorCache(0)
    cache.put(key(1), row(1))
    assert cache.get(key(1)) is None
    assert cache.bytes == 0


def test_everything_that_decides_a_row_is_in_its_key() -> None:
    ids = [5, 6, 700_000]
    keys = [
        key_of(group, finish, ids)
        for group in (PLAIN, Group(1), Group(0, skipped=2), Group(0, hidden=True))
        for finish in (
            None, Finish(), Finish(8), Finish(9), Finish(truncate_dim=8), Finish(normalize=True),
            Finish(unnormalized=True), Finish(8, unnormalized=True),
        )
    ]  # fmt: skip
    keys += [key_of(PLAIN, Finish(), other) for other in OTHER_IDS]
    assert len(set(keys)) == len(keys)
    assert key_of(Group(0), Finish(8), [*ids]) == keys[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("dim", "tokens", "limit"),
    [(64, 8, 16 << 20), (384, 20, 1 << 40), (768, 500, 16 << 20)],
)
def test_the_memory_of_20000_entries(dim: int, tokens: int, limit: int) -> None:
    code = MEASURE.format(dim=dim, tokens=tokens, limit=limit)
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, check=True, capture_output=True, timeout=300
    )
    counted, taken, entries = map(int, done.stdout.split())
    assert counted <= limit
    # pages are counted: one may have been begun before
    assert 0.7 * counted <= taken <= min(1.02 * counted, limit) + 4096
    assert entries == 20_000 or counted > 0.99 * limit


def test_threads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "OrderedDict", SlowDict)
    cache = VectorCache(50 * COST)
    wrong: list[int] = []

    def work(number: int) -> None:
        draw = np.random.default_rng([seed, number])
        for value in draw.integers(0, 100, 300).tolist():
            cache.put(key(value), row(value))
            found = cache.get(key(value))
            if found is not None and found[0].item() != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.bytes == 50 * COST == COST * len(cache._rows)
    assert cache.hits + cache.misses == 4 * 300


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN bits depend on the batch")
def test_a_hit_has_the_bits_of_the_computed_row(loaded: Loaded) -> None:
    (model,) = loaded.models
    texts = [*SENTENCES, "deep learning " * 40]
    wishes = [
        {"finish": Finish()},
        {"finish": Finish(16)},
        {"finish": Finish(normalize=True)},
        {"on_long": "chunk", "max_length": 20},
        {"on_long": "mean", "max_length": 20},
    ]

    async def scenario(engine: Engine) -> None:
        cache = engine._cache
        for number, wish in enumerate(wishes):
            hits = cache.hits
            first = await rows_of(engine, want(model, texts, **wish))
            copies = [found.clone() for found in first]
            for found in first:  # must not reach what is kept
                found.detach().numpy()[:] = 7
            misses = cache.misses
            again = await rows_of(engine, want(model, texts, **wish))
            assert same_rows(again, copies)
            assert cache.misses == misses
            assert cache.hits - hits >= len(texts)
            part = await rows_of(
                engine, want(model, [texts[2], f"the new one {number}", texts[6]], **wish)
            )
            assert same_rows([part[0], part[2]], [copies[2], copies[6]])
            assert cache.misses == misses + 1

    run(loaded, scenario, cache_bytes=1 << 22)


def test_usage_and_reports_do_not_depend_on_it(folder: Path) -> None:
    body = {
        "input": [*SENTENCES, *SENTENCES], "model": "a", "on_long": "end", "max_length": 6,
        "report": True,
    }  # fmt: skip
    answers = []
    for size in (0, 1 << 22):
        with in_thread(folder, any_model_name=True, cache_bytes=size) as server:
            for _ in range(2):
                answer = server.call("/v1/embeddings", body)
                answers.append((answer.json, answer.headers["x-truncated-texts"]))
            hits = server.metric("nomicbert_cache_hits_total")
            assert (hits > 0) == (size > 0)
    assert answers[0][0]["usage"]["truncated_texts"] > 0
    assert answers[1:] == answers[:1] * 3


def test_what_is_never_kept(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    (replica,) = loaded.replicas[0]
    original = replica.rows

    def planted(batch: list) -> list[torch.Tensor]:
        rows = original(batch)
        return [
            torch.full_like(found, torch.nan) if piece.ids[1] == 55 else found
            for piece, found in zip(batch, rows, strict=True)
        ]

    monkeypatch.setattr(replica, "rows", planted)
    engine, cache = make_engine(loaded, 1 << 20)

    async def scenario() -> None:
        engine.start(asyncio.get_running_loop())
        try:
            bad = Job(PLAIN, [[101, 55, 102]], Finish())
            for _ in range(2):
                with pytest.raises(ArithmeticError):
                    await engine.submit(bad)
                bad = Job(PLAIN, [[101, 55, 102]], Finish())
            assert cache.bytes == 0
            await engine.submit(Job(Group(0, hidden=True), [[101, 56, 102]], None))
            assert cache.bytes == 0
            assert cache.hits == 0
            good = Job(PLAIN, [[101, 56, 102]], Finish())
            await engine.submit(good, use_cache=False)
            assert cache.hits == cache.misses - 2 == 0
        finally:
            engine.stop()

    asyncio.run(scenario())
